"""The same prompts to two servers: how fast each answers, and whether they say the same.

    python -m scripts.ab aios=http://localhost:8000 openai=http://localhost:8001/v1 --max-tokens 16
    python -m scripts.ab aios=http://localhost:8000 aios=http://localhost:8000 --models hrm,gpt2

A side is DIALECT=URL, where DIALECT is `aios` (/generate with prompts), `openai` (URL/completions)
or `tgi` (/generate with inputs). Prompts are lines of --prompts, else ten of the sample model's
problems; what is sent means the same in each dialect (docs/baselines.md). Prints a table, the first
difference, and exits with 1 if a request failed.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from scripts.sample_problems import KINDS, held_out

PATHS = {"aios": "/generate", "openai": "/completions", "tgi": "/generate"}
KEY_ENV = "AB_API_KEY"
WARM_UP = "Hello"
SHOWN = 60  # characters of each text around a difference


@dataclass(frozen=True)
class Sampling:
    """How both sides are asked. Temperature 0 is greedy, top_p 1 cuts nothing."""

    max_tokens: int = 16
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Side:
    dialect: str
    url: str
    model: str | None = None


@dataclass(frozen=True)
class Answer:
    """`seconds` from asking to the whole answer; an answer with an `error` has no text."""

    seconds: float
    text: str = ""
    num_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Answers:
    """One side's, in the order of the prompts; `seconds` is how long all of them took together."""

    side: Side
    answers: Sequence[Answer]
    seconds: float


def body_of(side: Side, prompt: str, sampling: Sampling) -> dict[str, Any]:
    """The request in the side's dialect. TGI takes neither a temperature of 0 nor a top_p of 1,
    which mean nothing."""
    model = {} if side.model is None else {"model": side.model}
    given = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
    if side.dialect == "aios":
        return {"prompts": [prompt], "max_tokens": sampling.max_tokens, **given, **model}
    if side.dialect == "openai":
        return {
            "model": "local",
            "prompt": prompt,
            "max_tokens": sampling.max_tokens,
            **given,
            **model,
        }
    is_sampled = sampling.temperature > 0
    parameters: dict[str, Any] = {
        "max_new_tokens": sampling.max_tokens,
        "do_sample": is_sampled,
        "details": True,
    }
    if is_sampled:
        parameters |= {"temperature": sampling.temperature, "seed": sampling.seed}
        parameters |= {"top_p": sampling.top_p} if sampling.top_p < 1 else {}
    return {"inputs": prompt, "parameters": parameters, **model}


def read(dialect: str, answer: Mapping[str, Any]) -> tuple[str, int]:
    """The text and the number of its tokens."""
    if dialect == "aios":
        return answer["completions"][0], answer["usage"]["completion_tokens"]
    if dialect == "openai":
        return answer["choices"][0]["text"], answer["usage"]["completion_tokens"]
    return answer["generated_text"], answer["details"]["generated_tokens"]


async def ask(client: httpx.AsyncClient, side: Side, prompt: str, sampling: Sampling) -> Answer:
    begun = time.perf_counter()
    try:
        answer = await client.post(
            side.url + PATHS[side.dialect], json=body_of(side, prompt, sampling)
        )
    except httpx.HTTPError as error:
        return Answer(time.perf_counter() - begun, error=repr(error))
    seconds = time.perf_counter() - begun
    if answer.status_code != 200:
        return Answer(seconds, error=f"{answer.status_code}: {answer.text[:200]}")
    return Answer(seconds, *read(side.dialect, answer.json()))


async def ask_all(
    client: httpx.AsyncClient,
    side: Side,
    prompts: Sequence[str],
    sampling: Sampling,
    concurrency: int,
) -> Answers:
    """Every prompt once, at most `concurrency` at a time."""
    room = asyncio.Semaphore(concurrency)

    async def one(prompt: str) -> Answer:
        async with room:
            return await ask(client, side, prompt, sampling)

    begun = time.perf_counter()
    answers = await asyncio.gather(*map(one, prompts))
    return Answers(side, answers, time.perf_counter() - begun)


def row(of: Answers) -> dict[str, Any]:
    """What is told of one side; latencies in milliseconds, of what did not fail."""
    fine = [answer for answer in of.answers if answer.error is None]
    latencies = sorted(1000 * answer.seconds for answer in fine)
    tokens = sum(answer.num_tokens for answer in fine)
    return {
        "side": f"{of.side.dialect}={of.side.url}" + (f" {of.side.model}" if of.side.model else ""),
        "requests": len(of.answers),
        "errors": len(of.answers) - len(fine),
        **{
            f"p{q}_ms": round(latencies[int(len(latencies) * q / 100)], 1)
            for q in (50, 95)
            if latencies
        },
        "tokens": tokens,
        "tokens_per_s": round(tokens / of.seconds, 1),
    }


def agreement(prompts: Sequence[str], one: Answers, two: Answers) -> dict[str, Any]:
    """How many texts are equal, of the prompts that both answered, and where the first that differ
    do."""
    pairs = [
        (p, a, b)
        for p, a, b in zip(prompts, one.answers, two.answers, strict=True)
        if not (a.error or b.error)
    ]
    differing = [(prompt, a.text, b.text) for prompt, a, b in pairs if a.text != b.text]
    found: dict[str, Any] = {"compared": len(pairs), "equal": len(pairs) - len(differing)}
    if differing:
        prompt, first, second = differing[0]
        at = next(
            (at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
            min(len(first), len(second)),
        )
        found["first_difference"] = {
            "prompt": prompt,
            "at": at,
            "a": first[max(0, at - SHOWN) : at + SHOWN],
            "b": second[max(0, at - SHOWN) : at + SHOWN],
        }
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows under the names of the first one's columns."""
    lines = [list(rows[0]), *([str(item.get(name, "-")) for name in rows[0]] for item in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        [word.ljust(width) for word, width in zip(line, widths, strict=True)] for line in lines
    )
    return "\n".join("  ".join(line).rstrip() for line in padded)


async def compare(
    sides: Sequence[Side], prompts: Sequence[str], sampling: Sampling, concurrency: int
) -> list[Answers]:
    """One side after the other, so that they do not share a machine's time; each is asked something
    else before."""
    key = os.environ.get(KEY_ENV)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(timeout=300, headers=headers) as client:
        for side in sides:
            await ask(client, side, WARM_UP, sampling)
        return [await ask_all(client, side, prompts, sampling, concurrency) for side in sides]


def side_of(text: str) -> Side:
    dialect, _, url = text.partition("=")
    if dialect not in PATHS or not url.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(
            f"expected DIALECT=URL with {', '.join(PATHS)}, got {text!r}"
        )
    return Side(dialect, url.rstrip("/"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sides", type=side_of, nargs=2, metavar="DIALECT=URL")
    parser.add_argument("--models", help="the name of the model on each side, comma-separated")
    parser.add_argument("--prompts", type=Path, help="file with a prompt on each line")
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--concurrency", type=int, default=1, help="requests under way at a time")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of the table")
    args = parser.parse_args(argv)
    names = args.models.split(",") if args.models else [None, None]
    if len(names) != len(args.sides):
        parser.error(f"--models: expected two names, got {args.models!r}")
    sides = [
        Side(side.dialect, side.url, name) for side, name in zip(args.sides, names, strict=True)
    ]
    prompts = prompts_of(args.prompts)
    sampling = Sampling(args.max_tokens, args.temperature, args.top_p, args.seed)
    one, two = asyncio.run(compare(sides, prompts, sampling, args.concurrency))
    return report(prompts, one, two, as_json=args.json)


def prompts_of(path: Path | None) -> list[str]:
    """The lines of the file that are not empty, or ten problems that the sample model knows, of all
    kinds."""
    if path is None:
        return [problem.prompt for kind in KINDS for problem in held_out(kind, 10)][:: len(KINDS)]
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line]


def report(prompts: Sequence[str], one: Answers, two: Answers, *, as_json: bool) -> int:
    """Print what was found; the exit status."""
    rows, found = [row(one), row(two)], agreement(prompts, one, two)
    if as_json:
        print(json.dumps({"sides": rows, **found}))
    else:
        print(table(rows))
        print(f"equal texts: {found['equal']} of {found['compared']}")
        if difference := found.get("first_difference"):
            print(
                f"first difference, at character {difference['at']} of the answer to "
                f"{difference['prompt']!r}:"
            )
            print(f"  a: {difference['a']!r}\n  b: {difference['b']!r}")
    for error in dict.fromkeys(
        answer.error for answer in (*one.answers, *two.answers) if answer.error
    ):
        print(f"error: {error}", file=sys.stderr)
    return 1 if any(item["errors"] for item in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
