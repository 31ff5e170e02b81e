"""Measure what a batch costs others: first tokens of streams alone, and beside a batch, in turns.

python -m scripts.bench.batches --url http://127.0.0.1:8000 [--rounds 5] [--rate 5] [--requests 75]

The fleet has to be there, with nothing else to do. Requests come at random moments, the same ones
in each round. The batch has more lines than a round takes, and is cancelled behind it.
"""

import argparse
import asyncio
import json
import random
from dataclasses import dataclass, field
from time import perf_counter as now

import httpx

_TIMEOUT_S = 120.0
_NUM_LINES = 20_000
_LINE_TOKENS = 100
_BEGIN_S = 5.0
_ENDED = ("completed", "failed", "expired", "cancelled")


@dataclass
class Figures:
    """Seconds to the first tokens of all requests."""

    first_s: list[float] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """Return the milliseconds that this share of the first tokens took at most."""
        ranked = sorted(self.first_s)
        return 1000 * ranked[min(len(ranked) - 1, int(len(ranked) * share))]

    def __str__(self) -> str:
        return f"p50 {self.percentile(0.5):.0f} ms, p95 {self.percentile(0.95):.0f} ms"


async def first_token_s(client: httpx.AsyncClient, priority: str, number: int) -> float:
    """Return the seconds to the first text of a stream, which is read to its end."""
    body = {"prompt": f"Solve for x: {number % 9 + 2}x + 5 = 20", "max_tokens": 24}
    body |= {"stream": True, "seed": number}
    begun_s = now()
    first_s = None
    async with client.stream(
        "POST", "/v1/completions", json=body, headers={"X-Priority": priority}
    ) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if first_s is None and line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                if chunk["choices"] and chunk["choices"][0]["text"]:
                    first_s = now() - begun_s
    assert first_s is not None, "a stream without text"
    return first_s


async def load(client: httpx.AsyncClient, args: argparse.Namespace) -> Figures:
    """Send the requests of a round, at the same random moments each time."""
    moments = random.Random(args.requests)
    asking = []
    for number in range(args.requests):
        asking.append(asyncio.create_task(first_token_s(client, args.priority, number)))
        await asyncio.sleep(moments.expovariate(args.rate))
    return Figures(await asyncio.gather(*asking))


async def begin_batch(client: httpx.AsyncClient) -> str:
    """Make a batch, and return its id once its lines run."""
    lines = []
    for number in range(_NUM_LINES):
        body = {"prompt": f"Solve for x: {number % 9 + 2}x + {number} = 20", "seed": number}
        body |= {"max_tokens": _LINE_TOKENS, "ignore_eos": True}
        line = {"custom_id": f"line-{number}", "url": "/v1/completions", "body": body}
        lines.append(json.dumps(line))
    file = {"file": ("lines.jsonl", "\n".join(lines).encode())}
    uploaded = await client.post("/v1/files", files=file, data={"purpose": "batch"})
    batch = {"input_file_id": uploaded.json()["id"], "endpoint": "/v1/completions"}
    made = await client.post("/v1/batches", json=batch)
    made.raise_for_status()
    await asyncio.sleep(_BEGIN_S)
    return str(made.json()["id"])


async def cancel(client: httpx.AsyncClient, batch_id: str) -> tuple[int, float]:
    """Cancel a batch. Return how many lines were done, and how many seconds its end took."""
    begun_s = now()
    await client.post(f"/v1/batches/{batch_id}/cancel")
    while True:
        batch = (await client.get(f"/v1/batches/{batch_id}")).json()
        if batch["status"] in _ENDED:
            return batch["request_counts"]["completed"], now() - begun_s
        await asyncio.sleep(0.05)


async def measure(args: argparse.Namespace) -> None:
    alone = Figures()
    beside = Figures()
    async with httpx.AsyncClient(base_url=args.url, timeout=_TIMEOUT_S) as client:
        await load(client, args)  # warms up
        for number in range(args.rounds):
            figures = await load(client, args)
            alone.first_s += figures.first_s
            batch_id = await begin_batch(client)
            begun_s = now() - _BEGIN_S
            figures_beside = await load(client, args)
            beside.first_s += figures_beside.first_s
            seconds = now() - begun_s
            num_done, cancel_s = await cancel(client, batch_id)
            ratio = figures_beside.percentile(0.95) / figures.percentile(0.95)
            print(
                f"round {number + 1}: alone {figures}; beside a batch {figures_beside}; "
                f"p95 x {ratio:.2f}; {num_done / seconds:.1f} lines/s; cancelled in {cancel_s:.1f} s",
                flush=True,
            )
    ratio = beside.percentile(0.95) / alone.percentile(0.95)
    print(f"all rounds: alone {alone}; beside a batch {beside}; p95 x {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=5.0)
    parser.add_argument("--requests", type=int, default=75)
    parser.add_argument("--priority", default="interactive")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
