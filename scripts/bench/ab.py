"""Send the same prompts to two servers, and compare their speed and their texts.

    python -m scripts.bench.ab aios=http://localhost:8000 openai=http://localhost:8001/v1
    python -m scripts.bench.ab aios=http://localhost:8000 aios=http://localhost:8000 --models a,b

A side is DIALECT=URL, where DIALECT is `aios` (/generate with prompts), `openai` (URL/completions)
or `tgi` (/generate with inputs). The prompts are the lines of --prompts, or ten problems of the
sample model. The requests mean the same in each dialect (docs/baselines.md). The program prints a
table and the first difference. The exit status is 1 if a request failed.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from scripts.train.sample_problems import KINDS, Problem, held_out

PATHS = {"aios": "/generate", "openai": "/completions", "tgi": "/generate"}
KEY_ENV = "AB_API_KEY"
WARM_UP = "Hello"
# The number of characters of each text that are shown before and after a difference.
SHOWN = 60


@dataclass(frozen=True)
class Sampling:
    """The sampling parameters of both sides.

    A temperature of 0 is greedy, and a top_p of 1 cuts no tokens off.
    """

    max_tokens: int = 16
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Side:
    """A server, the dialect that it is spoken to, and its model or None for its default."""

    dialect: str
    url: str
    model: str | None = None


@dataclass(frozen=True)
class Answer:
    """The answer of a server to one prompt.

    `seconds` is the time from the request to the whole answer. An answer with an `error` has no
    text.
    """

    seconds: float
    text: str = ""
    num_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Answers:
    """The answers of one side, in the order of the prompts.

    `seconds` is the time that all of them took together.
    """

    side: Side
    answers: Sequence[Answer]
    seconds: float


def body_of(side: Side, prompt: str, sampling: Sampling) -> dict[str, Any]:
    """Return the body of a request in the dialect of a side."""
    body: dict[str, Any]
    if side.dialect == "aios":
        body = {"prompts": [prompt], **asdict(sampling)}
    elif side.dialect == "openai":
        body = {"model": "local", "prompt": prompt, **asdict(sampling)}
    else:
        body = {"inputs": prompt, "parameters": _tgi_parameters(sampling)}
    if side.model is not None:
        body["model"] = side.model
    return body


def _tgi_parameters(sampling: Sampling) -> dict[str, Any]:
    is_sampled = sampling.temperature > 0
    parameters: dict[str, Any] = {
        "max_new_tokens": sampling.max_tokens,
        "do_sample": is_sampled,
        "details": True,
    }
    # TGI refuses a temperature of 0 and a top_p of 1. Without the parameters it does the same.
    if is_sampled:
        parameters["temperature"] = sampling.temperature
        parameters["seed"] = sampling.seed
        if sampling.top_p < 1:
            parameters["top_p"] = sampling.top_p
    return parameters


def read(dialect: str, answer: Mapping[str, Any]) -> tuple[str, int]:
    """Return the text of an answer, and the number of its tokens."""
    if dialect == "aios":
        return answer["completions"][0], answer["usage"]["completion_tokens"]
    if dialect == "openai":
        return answer["choices"][0]["text"], answer["usage"]["completion_tokens"]
    return answer["generated_text"], answer["details"]["generated_tokens"]


async def ask(client: httpx.AsyncClient, side: Side, prompt: str, sampling: Sampling) -> Answer:
    """Send one prompt to a side, and return its answer, which may be an error."""
    url = side.url + PATHS[side.dialect]
    started = time.perf_counter()
    try:
        response = await client.post(url, json=body_of(side, prompt, sampling))
    except httpx.HTTPError as error:
        return Answer(time.perf_counter() - started, error=repr(error))
    seconds = time.perf_counter() - started

    if response.status_code != 200:
        return Answer(seconds, error=f"{response.status_code}: {response.text[:200]}")
    text, num_tokens = read(side.dialect, response.json())
    return Answer(seconds, text, num_tokens)


async def ask_all(
    client: httpx.AsyncClient,
    side: Side,
    prompts: Sequence[str],
    sampling: Sampling,
    concurrency: int,
) -> Answers:
    """Send every prompt once, at most `concurrency` at a time, and return the answers."""
    slots = asyncio.Semaphore(concurrency)

    async def ask_in_turn(prompt: str) -> Answer:
        async with slots:
            return await ask(client, side, prompt, sampling)

    started = time.perf_counter()
    answers = await asyncio.gather(*(ask_in_turn(prompt) for prompt in prompts))
    return Answers(side, answers, time.perf_counter() - started)


def row(answers: Answers) -> dict[str, Any]:
    """Return the row of one side. Its latencies are in milliseconds, without failed requests."""
    latencies_ms = []
    tokens = 0
    for answer in answers.answers:
        if answer.error is None:
            latencies_ms.append(1000 * answer.seconds)
            tokens += answer.num_tokens
    latencies_ms.sort()

    side = answers.side
    name = f"{side.dialect}={side.url}"
    if side.model:
        name += f" {side.model}"
    num_requests = len(answers.answers)
    cells: dict[str, Any] = {
        "side": name,
        "requests": num_requests,
        "errors": num_requests - len(latencies_ms),
    }
    if latencies_ms:
        cells["p50_ms"] = round(latencies_ms[int(len(latencies_ms) * 50 / 100)], 1)
        cells["p95_ms"] = round(latencies_ms[int(len(latencies_ms) * 95 / 100)], 1)
    cells["tokens"] = tokens
    cells["tokens_per_s"] = round(tokens / answers.seconds, 1)
    return cells


def agreement(prompts: Sequence[str], one: Answers, two: Answers) -> dict[str, Any]:
    """Return the number of prompts that both sides answered, and of those with equal texts.

    If texts differ, the result also has the first such prompt, with both texts around the first
    character that differs.
    """
    num_compared = 0
    differences: list[dict[str, Any]] = []
    for prompt, a, b in zip(prompts, one.answers, two.answers, strict=True):
        if a.error or b.error:
            continue
        num_compared += 1
        if a.text != b.text:
            index = _first_difference(a.text, b.text)
            start = max(0, index - SHOWN)
            end = index + SHOWN
            differences.append(
                {"prompt": prompt, "at": index, "a": a.text[start:end], "b": b.text[start:end]}
            )

    result: dict[str, Any] = {"compared": num_compared, "equal": num_compared - len(differences)}
    if differences:
        result["first_difference"] = differences[0]
    return result


def _first_difference(one: str, two: str) -> int:
    """Return the first index at which two texts differ.

    If one text begins with the other, return the length of the shorter one.
    """
    for index, (a, b) in enumerate(zip(one, two, strict=False)):
        if a != b:
            return index
    return min(len(one), len(two))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as text, under the names of the first row's columns."""
    columns = []
    for name in rows[0]:
        cells = [name]
        for values in rows:
            cells.append(str(values.get(name, "-")))
        width = max(len(cell) for cell in cells)
        columns.append([cell.ljust(width) for cell in cells])

    lines = []
    for line in zip(*columns, strict=True):
        lines.append("  ".join(line).rstrip())
    return "\n".join(lines)


async def compare(
    sides: Sequence[Side], prompts: Sequence[str], sampling: Sampling, concurrency: int
) -> list[Answers]:
    """Send the prompts to one side after the other, so that they do not compete for the machine.

    Both sides are warmed up with another prompt first. If the environment has AB_API_KEY, it is
    sent as the key of the caller.
    """
    key = os.environ.get(KEY_ENV)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    results = []
    async with httpx.AsyncClient(timeout=300, headers=headers) as client:
        for side in sides:
            await ask(client, side, WARM_UP, sampling)
        for side in sides:
            results.append(await ask_all(client, side, prompts, sampling, concurrency))
    return results


def side_of(text: str) -> Side:
    """Return the side that DIALECT=URL means, for argparse."""
    dialect, _, url = text.partition("=")
    if dialect not in PATHS or not url.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(
            f"expected DIALECT=URL with {', '.join(PATHS)}, got {text!r}"
        )
    return Side(dialect, url.rstrip("/"))


def _parser() -> argparse.ArgumentParser:
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
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    sides = args.sides
    if args.models:
        names = args.models.split(",")
        if len(names) != len(sides):
            parser.error(f"--models: expected two names, got {args.models!r}")
        sides = [replace(side, model=name) for side, name in zip(sides, names, strict=True)]
    prompts = prompts_of(args.prompts)
    sampling = Sampling(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
    )
    one, two = asyncio.run(compare(sides, prompts, sampling, args.concurrency))
    return report(prompts, one, two, as_json=args.json)


def prompts_of(path: Path | None) -> list[str]:
    """Return the lines of a file that are not empty.

    Without a file, return ten problems that the sample model knows, of all kinds.
    """
    if path is None:
        problems: list[Problem] = []
        for kind in KINDS:
            problems += held_out(kind, 10)
        # Ten problems of each of the four kinds follow each other. Every fourth one makes ten.
        return [problem.prompt for problem in problems[:: len(KINDS)]]
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line]


def report(prompts: Sequence[str], one: Answers, two: Answers, *, as_json: bool) -> int:
    """Print the comparison and return the exit status."""
    rows = [row(one), row(two)]
    texts = agreement(prompts, one, two)
    if as_json:
        print(json.dumps({"sides": rows, **texts}))
    else:
        print(table(rows))
        print(f"equal texts: {texts['equal']} of {texts['compared']}")
        difference = texts.get("first_difference")
        if difference is not None:
            print(
                f"first difference, at character {difference['at']} of the answer to "
                f"{difference['prompt']!r}:"
            )
            print(f"  a: {difference['a']!r}")
            print(f"  b: {difference['b']!r}")

    errors: list[str] = []
    for answer in (*one.answers, *two.answers):
        if answer.error and answer.error not in errors:
            errors.append(answer.error)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
