"""Compare log-likelihoods of answers of an HRM-Text: ours, transformers', and those of servers.

    python -m scripts.bench.likelihoods models/hrm-text-math \
        --questions assets/eval/maths.jsonl --server vllm=http://localhost:8001/v1
    python -m scripts.bench.likelihoods models/hrm-text-code --problems code

An HRM-Text is a PrefixLM: attention is bidirectional on the prompt and causal on the answer. The
answers are the `reference` of each question, or the model's own greedy answers to held-out problems
of a domain. They are scored in nats behind their prompts. transformers does it three times: with
the prompt marked by `token_type_ids`, as the model was trained; with nothing marked, as a causal
network; and with prompt and answer marked, where each token is seen before it is predicted. A
server is asked to repeat prompt and answer with log-probabilities. Own answers are also written
again, with the log-probabilities of the tokens that are chosen. The table has each side's mean, how
far it is from ours at most, and the first side above that has the same scores. Only answers that
the side wrote likewise are counted.
"""

import argparse
import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import httpx
import torch
from transformers import AutoTokenizer, HrmTextForCausalLM

from scripts.cli.ab.asking import likelihood
from scripts.cli.ab.sides import Side
from scripts.train.problems.streams import MAKERS, OTHER, held_out
from worker.llm import LLM
from worker.sampling_params import SamplingParams

CONDITION = "direct"
MAX_TOKENS = 256
_PREFIX = "<|im_start|><|object_ref_start|>"
_SUFFIX = "<|im_end|>"
_EQUAL = 0.001
Marked = Literal["prompt", "nothing", "all"]


@dataclass(frozen=True)
class Pair:
    """An answer and its prompt, as text and as the tokens of the model's own format."""

    prompt: str
    answer: str
    prompt_ids: list[int]
    answer_ids: list[int]


class Format:
    """The model's own format of a prompt, as tokens."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(path)

    def pair(self, prompt: str, answer: str) -> Pair:
        return Pair(prompt, answer, self._ids(f"{_PREFIX}{prompt}{_SUFFIX}"), self._ids(answer))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def pairs_of(path: Path, file: Path, limit: int) -> list[Pair]:
    """Return the questions of a file, each of which has a reference."""
    form = Format(path)
    pairs = []
    for line in file.read_text().splitlines()[:limit]:
        question = json.loads(line)
        pairs.append(form.pair(question["prompt"], question["reference"]))
    return pairs


def own_pairs(path: Path, domain: str, limit: int) -> list[Pair]:
    """Return held-out problems of a domain with the model's own greedy answers.

    Answers that did not end are left out, and those that the tokenizer cuts otherwise than the
    model wrote them, as no other side could score the same tokens.
    """
    form = Format(path)
    kinds = [kind for kind in MAKERS[domain] if kind != OTHER]
    prompts = []
    for kind in kinds:
        num_each = math.ceil(limit / len(kinds))
        prompts += [problem.prompt for problem in held_out(domain, kind, num_each)]
    pairs = []
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, condition=CONDITION)
    with LLM(path, threads=1, dtype="float32") as llm:
        for output in llm.generate(prompts[:limit], params):
            [answer] = output.outputs
            pair = form.pair(output.prompt or "", answer.text)
            if answer.finish_reason == "stop" and pair.answer_ids == _without_end(answer.token_ids):
                pairs.append(pair)
    return pairs


def ours(path: Path, pairs: Sequence[Pair]) -> list[float]:
    with LLM(path, threads=1, dtype="float32") as llm:
        prompts = [pair.prompt for pair in pairs]
        scores = llm.score(prompts, [pair.answer for pair in pairs], condition=CONDITION)
    return [score.log_likelihood for score in scores]


def ours_written(path: Path, pairs: Sequence[Pair]) -> list[float | None]:
    """Return the scores of our greedy answers as they are written, None for another answer."""
    values: list[float | None] = []
    with LLM(path, threads=1, dtype="float32") as llm:
        for pair in pairs:
            params = SamplingParams(
                temperature=0.0,
                max_tokens=len(pair.answer_ids),
                logprobs=0,
                condition=CONDITION,
            )
            [output] = llm.generate(pair.prompt, params)
            [answer] = output.outputs
            is_same = list(answer.token_ids) == pair.answer_ids
            values.append(answer.cumulative_logprob if is_same else None)
    return values


@torch.no_grad()
def of_transformers(path: Path, pairs: Sequence[Pair], marked: Marked) -> list[float]:
    """Return the scores of transformers' own network, one pair at a time."""
    net: Any = HrmTextForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    values = []
    for pair in pairs:
        ids = torch.tensor([pair.prompt_ids + pair.answer_ids])
        num_marked = {"prompt": len(pair.prompt_ids), "nothing": 0, "all": ids.shape[1]}[marked]
        marks = {}
        if num_marked:
            types = torch.zeros_like(ids)
            types[:, :num_marked] = 1
            marks["token_type_ids"] = types
        logits = net(input_ids=ids, use_cache=False, **marks).logits[0].log_softmax(-1)
        first = len(pair.prompt_ids)
        chosen = logits[first - 1 : -1].gather(1, ids[0, first:, None])
        values.append(chosen.sum().item())
    return values


@torch.no_grad()
def transformers_written(path: Path, pairs: Sequence[Pair]) -> list[float | None]:
    """Return the scores of `generate`'s greedy answers, None for another answer than ours."""
    net: Any = HrmTextForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    values: list[float | None] = []
    for pair in pairs:
        ids = torch.tensor([pair.prompt_ids])
        out = net.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            token_type_ids=torch.ones_like(ids),
            max_new_tokens=len(pair.answer_ids),
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        written = out.sequences[0, ids.shape[1] :]
        if written.tolist() != pair.answer_ids:
            values.append(None)
            continue
        logprobs = torch.cat(out.logits).log_softmax(-1)
        values.append(logprobs.gather(1, written[:, None]).sum().item())
    return values


def _without_end(ids: Sequence[int]) -> list[int]:
    """Return the tokens of an answer that ended without the last, which tells its end."""
    return list(ids[:-1])


async def of_server(url: str, pairs: Sequence[Pair]) -> list[float | None]:
    """Return the scores of a server that repeats prompt and answer, None where it tells none."""
    side = Side("server", "openai", url, template=f"{_PREFIX}{{problem}}{_SUFFIX}")
    values: list[float | None] = []
    async with httpx.AsyncClient(timeout=120) as client:
        for pair in pairs:
            found = await likelihood(client, side, pair.prompt, pair.answer)
            values.append(None if found is None else found.log_likelihood)
    return values


async def server_written(url: str, pairs: Sequence[Pair]) -> list[float | None]:
    """Return the scores of a server's greedy answers, None for another answer than ours."""
    values: list[float | None] = []
    async with httpx.AsyncClient(timeout=120) as client:
        for pair in pairs:
            body = {
                "model": "local",
                "prompt": pair.prompt_ids,
                "max_tokens": len(pair.answer_ids),
                "temperature": 0,
                "logprobs": 1,
            }
            response = await client.post(f"{url}/completions", json=body)
            response.raise_for_status()
            [choice] = response.json()["choices"]
            is_same = choice["text"] == pair.answer
            values.append(_sum_of(choice["logprobs"]) if is_same else None)
    return values


def _sum_of(logprobs: Mapping[str, Any]) -> float:
    """Return the log-likelihood of a completion. llama.cpp tells it in the form of a chat."""
    if "content" in logprobs:
        return float(sum(entry["logprob"] for entry in logprobs["content"]))
    return float(sum(logprobs["token_logprobs"]))


def table(sides: Mapping[str, Sequence[float | None]]) -> str:
    """Return the rows in Markdown. The first side is ours, which tells all scores."""
    reference = next(iter(sides.values()))
    lines = [
        "| side | mean, nats | furthest from ours | equal to 0.001 | the same as |",
        "|---|---|---|---|---|",
    ]
    for name, values in sides.items():
        told = [value for value in values if value is not None]
        if not told:
            lines.append(f"| {name} | tells none | | | |")
            continue
        gaps = gaps_of(values, reference)
        num_equal = sum(gap < _EQUAL for gap in gaps)
        lines.append(
            f"| {name} | {fmean(told):.3f} | {max(gaps):.2g} | {num_equal} of {len(told)} "
            f"| {_same_side(name, sides)} |"
        )
    return "\n".join(lines)


def gaps_of(values: Sequence[float | None], others: Sequence[float | None]) -> list[float]:
    """Return how far two sides are from each other, where both tell a score."""
    gaps = []
    for value, other in zip(values, others, strict=True):
        if value is not None and other is not None:
            gaps.append(abs(value - other))
    return gaps


def _same_side(name: str, sides: Mapping[str, Sequence[float | None]]) -> str:
    """Return the first side above `name` whose scores are its own, empty if there is none."""
    for other, values in sides.items():
        if other == name:
            break
        gaps = gaps_of(sides[name], values)
        if gaps and max(gaps) < _EQUAL:
            return other
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="directory of an HRM-Text")
    answers = parser.add_mutually_exclusive_group(required=True)
    answers.add_argument("--questions", type=Path, help="a file of questions with references")
    answers.add_argument("--problems", choices=MAKERS, help="a domain: the model's own answers")
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--server", action="append", default=[], metavar="NAME=URL")
    args = parser.parse_args()
    torch.set_num_threads(1)
    is_own = args.problems is not None
    if is_own:
        pairs = own_pairs(args.path, args.problems, args.limit)
    else:
        pairs = pairs_of(args.path, args.questions, args.limit)
    num_tokens = sum(len(pair.answer_ids) for pair in pairs)
    print(f"{len(pairs)} answers, {num_tokens} tokens\n")
    print(table(sides_of(args.path, pairs, args.server, is_own=is_own)))


def sides_of(
    path: Path, pairs: Sequence[Pair], servers: Sequence[str], *, is_own: bool
) -> dict[str, Sequence[float | None]]:
    """Return the scores of all sides, ours first. Each server is `NAME=URL`."""
    sides: dict[str, Sequence[float | None]] = {
        "this fleet": ours(path, pairs),
        "transformers, prompt marked": of_transformers(path, pairs, "prompt"),
        "transformers, nothing marked": of_transformers(path, pairs, "nothing"),
        "transformers, prompt and answer marked": of_transformers(path, pairs, "all"),
    }
    if is_own:
        sides["this fleet, as it writes"] = ours_written(path, pairs)
        sides["transformers, as it writes"] = transformers_written(path, pairs)
    for server in servers:
        name, _, url = server.partition("=")
        sides[f"{name}, prompt and answer repeated"] = asyncio.run(of_server(url, pairs))
        if is_own:
            sides[f"{name}, as it writes"] = asyncio.run(server_written(url, pairs))
    return sides


if __name__ == "__main__":
    main()
