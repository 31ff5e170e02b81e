"""Compare log-likelihoods of answers of an HRM-Text: ours, transformers', and those of servers.

    python -m scripts.bench.likelihoods models/sample-hrm-text \
        --questions assets/eval/maths.jsonl --server vllm=http://localhost:8001/v1

An HRM-Text is a PrefixLM: attention is bidirectional on the prompt and causal on the answer. Of each
question the `reference` is scored behind the prompt, in nats. transformers does it twice: with the
prompt marked by `token_type_ids`, as the model was trained, and without, as a causal network. A
server is asked to repeat prompt and answer with log-probabilities; most read both causally. The
table has each side's mean, and how far it is from ours at most.
"""

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx
import torch
from transformers import AutoTokenizer, HrmTextForCausalLM

from scripts.cli.ab.asking import likelihood
from scripts.cli.ab.sides import Side
from worker.llm import LLM

CONDITION = "direct"


@dataclass(frozen=True)
class Pair:
    """An answer and its prompt, as text and as the tokens of the model's own format."""

    prompt: str
    answer: str
    prompt_ids: list[int]
    answer_ids: list[int]


def pairs_of(path: Path, file: Path, limit: int) -> list[Pair]:
    """Return the questions of a file that have a reference, in the format of the model."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    special = json.loads((path / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in special}
    start = [ids["<|im_start|>"], ids["<|object_ref_start|>"]]
    end = [ids["<|im_end|>"]]
    pairs = []
    for line in file.read_text().splitlines()[:limit]:
        question = json.loads(line)
        prompt_ids = tokenizer(question["prompt"], add_special_tokens=False)["input_ids"]
        answer_ids = tokenizer(question["reference"], add_special_tokens=False)["input_ids"]
        pairs.append(
            Pair(question["prompt"], question["reference"], start + prompt_ids + end, answer_ids)
        )
    return pairs


def ours(path: Path, pairs: Sequence[Pair]) -> list[float]:
    with LLM(path, threads=1, dtype="float32") as llm:
        prompts = [pair.prompt for pair in pairs]
        scores = llm.score(prompts, [pair.answer for pair in pairs], condition=CONDITION)
    return [score.log_likelihood for score in scores]


@torch.no_grad()
def of_transformers(path: Path, pairs: Sequence[Pair], *, is_prefix: bool) -> list[float]:
    """Return the scores of transformers' own network, one pair at a time."""
    net: Any = HrmTextForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    values = []
    for pair in pairs:
        ids = torch.tensor([pair.prompt_ids + pair.answer_ids])
        types = torch.zeros_like(ids)
        types[:, : len(pair.prompt_ids)] = 1
        marks = {"token_type_ids": types} if is_prefix else {}
        logits = net(input_ids=ids, use_cache=False, **marks).logits[0].log_softmax(-1)
        first = len(pair.prompt_ids)
        chosen = logits[first - 1 : -1].gather(1, ids[0, first:, None])
        values.append(chosen.sum().item())
    return values


async def of_server(
    url: str, pairs: Sequence[Pair], prefix: str, suffix: str
) -> list[float | None]:
    """Return the scores of a server, None where it tells none."""
    side = Side("server", "openai", url, template=f"{prefix}{{problem}}{suffix}")
    values: list[float | None] = []
    async with httpx.AsyncClient(timeout=120) as client:
        for pair in pairs:
            found = await likelihood(client, side, pair.prompt, pair.answer)
            values.append(None if found is None else found.log_likelihood)
    return values


def table(sides: Mapping[str, Sequence[float | None]]) -> str:
    """Return the rows in Markdown. The first side is ours, which tells all scores."""
    reference = next(iter(sides.values()))
    lines = ["| side | mean, nats | furthest from ours | equal to 0.01 |", "|---|---|---|---|"]
    for name, values in sides.items():
        told = []
        gaps = []
        for value, own in zip(values, reference, strict=True):
            if value is not None and own is not None:
                told.append(value)
                gaps.append(abs(value - own))
        if not told:
            lines.append(f"| {name} | tells none | | |")
            continue
        num_equal = sum(gap < 0.01 for gap in gaps)
        lines.append(
            f"| {name} | {fmean(told):.3f} | {max(gaps):.2g} | {num_equal} of {len(values)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="directory of an HRM-Text")
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--server", action="append", default=[], metavar="NAME=URL")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pairs = pairs_of(args.path, args.questions, args.limit)
    sides: dict[str, Sequence[float | None]] = {"this fleet": ours(args.path, pairs)}
    sides["transformers, prompt marked"] = of_transformers(args.path, pairs, is_prefix=True)
    sides["transformers, unmarked"] = of_transformers(args.path, pairs, is_prefix=False)
    for server in args.server:
        name, _, url = server.partition("=")
        prefix = "<|im_start|><|object_ref_start|>"
        sides[name] = asyncio.run(of_server(url, pairs, prefix, "<|im_end|>"))
    print(table(sides))


if __name__ == "__main__":
    main()
