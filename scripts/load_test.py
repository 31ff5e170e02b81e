"""An open-loop load on a running server: requests leave at a fixed rate, whether or not earlier ones have answered.

    python -m scripts.load_test --url http://127.0.0.1:8000 --rate 10 --seconds 30 --prompts 8

Prints one JSON line (rate achieved, latencies in ms, tokens per second, errors) and exits with 1 if a request failed.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass, field

import httpx

from scripts.sample_problems import KINDS, held_out


@dataclass
class Tally:
    """What came back. Latencies in seconds."""

    latencies_s: list[float] = field(default_factory=list)
    completion_tokens: int = 0
    errors: list[str] = field(default_factory=list)


async def one(client: httpx.AsyncClient, body: dict[str, object], tally: Tally) -> None:
    """Send one request and write down how it went."""
    begun = time.perf_counter()
    try:
        answer = await client.post("/generate", json=body)
    except httpx.HTTPError as error:
        tally.errors.append(repr(error))
        return
    if answer.status_code != 200:
        tally.errors.append(f"{answer.status_code}: {answer.text[:200]}")
        return
    tally.latencies_s.append(time.perf_counter() - begun)
    tally.completion_tokens += answer.json()["usage"]["completion_tokens"]


async def load(url: str, rate: float, seconds: float, prompts: int, max_tokens: int) -> dict[str, object]:
    """Run the load and sum it up."""
    problems = [problem.prompt for kind in KINDS for problem in held_out(kind, 100)]
    rng, tally = random.Random(0), Tally()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client, asyncio.TaskGroup() as group:
        begun = time.perf_counter()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
            body = {"prompts": rng.sample(problems, prompts), "max_tokens": max_tokens, "temperature": 0.7}
            group.create_task(one(client, body, tally))
    return summary(tally, time.perf_counter() - begun, prompts)


def summary(tally: Tally, seconds: float, prompts: int) -> dict[str, object]:
    latencies_ms = sorted(1000 * value for value in tally.latencies_s)
    at = {f"p{q}_ms": round(latencies_ms[int(len(latencies_ms) * q / 100)], 1) for q in (50, 95, 99) if latencies_ms}
    return {
        "requests": len(latencies_ms) + len(tally.errors),
        "errors": len(tally.errors),
        "requests_per_s": round(len(latencies_ms) / seconds, 2),
        "prompts_per_request": prompts,
        "tokens_per_s": round(tally.completion_tokens / seconds, 1),
        **at,
        **({"first_error": tally.errors[0]} if tally.errors else {}),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--rate", type=float, default=10.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--prompts", type=int, default=1, help="prompts in each request")
    parser.add_argument("--max-tokens", type=int, default=16)
    args = parser.parse_args()
    result = asyncio.run(load(args.url, args.rate, args.seconds, args.prompts, args.max_tokens))
    print(json.dumps(result))
    return 1 if result["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
