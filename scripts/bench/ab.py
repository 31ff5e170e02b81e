"""The same prompts to two servers: how fast each answers, and whether they say the same.

    python -m scripts.bench.ab aios=http://localhost:8000 openai=http://localhost:8001/v1 --max-tokens 16
    python -m scripts.bench.ab aios=http://localhost:8000 aios=http://localhost:8000 --models hrm,gpt2

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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from scripts.train.sample_problems import KINDS, Problem, held_out

PATHS = {"aios": "/generate", "openai": "/completions", "tgi": "/generate"}
KEY_ENV = "AB_API_KEY"
WARM_UP = "Hello"
# Characters that are shown of each text, before and after a difference.
SHOWN = 60


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters, the same for both sides. Temperature 0 is greedy, top_p 1 cuts
    nothing."""

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
    """A server's answer to one prompt.

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

    `seconds` is how long all of them took together.
    """

    side: Side
    answers: Sequence[Answer]
    seconds: float


def body_of(side: Side, prompt: str, sampling: Sampling) -> dict[str, Any]:
    """Return the request in the side's dialect."""
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
    # TGI refuses a temperature of 0 and a top_p of 1: leaving them out means the same.
    if is_sampled:
        parameters["temperature"] = sampling.temperature
        parameters["seed"] = sampling.seed
        if sampling.top_p < 1:
            parameters["top_p"] = sampling.top_p
    return parameters


def read(dialect: str, answer: Mapping[str, Any]) -> tuple[str, int]:
    """Return the text of an answer and the number of its tokens."""
    if dialect == "aios":
        return answer["completions"][0], answer["usage"]["completion_tokens"]
    if dialect == "openai":
        return answer["choices"][0]["text"], answer["usage"]["completion_tokens"]
    return answer["generated_text"], answer["details"]["generated_tokens"]


async def ask(client: httpx.AsyncClient, side: Side, prompt: str, sampling: Sampling) -> Answer:
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
    free = asyncio.Semaphore(concurrency)

    async def ask_in_turn(prompt: str) -> Answer:
        async with free:
            return await ask(client, side, prompt, sampling)

    started = time.perf_counter()
    answers = await asyncio.gather(*(ask_in_turn(prompt) for prompt in prompts))
    return Answers(side, answers, time.perf_counter() - started)


def row(of: Answers) -> dict[str, Any]:
    """Return one side's row of the table: latencies in milliseconds, of requests that did not
    fail."""
    latencies = []
    tokens = 0
    for answer in of.answers:
        if answer.error is None:
            latencies.append(1000 * answer.seconds)
            tokens += answer.num_tokens
    latencies.sort()

    name = f"{of.side.dialect}={of.side.url}"
    if of.side.model:
        name += f" {of.side.model}"
    cells: dict[str, Any] = {
        "side": name,
        "requests": len(of.answers),
        "errors": len(of.answers) - len(latencies),
    }
    if latencies:
        cells["p50_ms"] = round(latencies[int(len(latencies) * 50 / 100)], 1)
        cells["p95_ms"] = round(latencies[int(len(latencies) * 95 / 100)], 1)
    cells["tokens"] = tokens
    cells["tokens_per_s"] = round(tokens / of.seconds, 1)
    return cells


def agreement(prompts: Sequence[str], one: Answers, two: Answers) -> dict[str, Any]:
    """Return how many texts are equal, of the prompts that both sides answered.

    Where some are not, the first such prompt is returned too, with both texts around the first
    character that differs.
    """
    num_compared = 0
    differences: list[dict[str, Any]] = []
    for prompt, a, b in zip(prompts, one.answers, two.answers, strict=True):
        if a.error or b.error:
            continue
        num_compared += 1
        if a.text != b.text:
            at = _first_difference(a.text, b.text)
            start = max(0, at - SHOWN)
            end = at + SHOWN
            differences.append(
                {"prompt": prompt, "at": at, "a": a.text[start:end], "b": b.text[start:end]}
            )

    result: dict[str, Any] = {"compared": num_compared, "equal": num_compared - len(differences)}
    if differences:
        result["first_difference"] = differences[0]
    return result


def _first_difference(one: str, two: str) -> int:
    """Return the index at which two texts differ; where one begins with the other, the end of the
    shorter one."""
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
        width = max(map(len, cells))
        columns.append([cell.ljust(width) for cell in cells])

    lines = []
    for line in zip(*columns, strict=True):
        lines.append("  ".join(line).rstrip())
    return "\n".join(lines)


async def compare(
    sides: Sequence[Side], prompts: Sequence[str], sampling: Sampling, concurrency: int
) -> list[Answers]:
    """Ask one side after the other, so that they do not share a machine's time.

    Every side is warmed up by another prompt first.
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
    """Return the lines of the file that are not empty; without a file, ten problems of all kinds
    that the sample model knows."""
    if path is None:
        problems: list[Problem] = []
        for kind in KINDS:
            problems += held_out(kind, 10)
        # The problems stand kind by kind: every fourth one makes ten that are of all kinds.
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

    errors = [answer.error for answer in (*one.answers, *two.answers) if answer.error]
    for error in dict.fromkeys(errors):  # each once, in order
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
