"""Measure the embeddings of servers that run already, beside each other.

python -m scripts.bench.embeddings fleet=http://127.0.0.1:8000/v1/embeddings \\
    other=http://127.0.0.1:7997/embeddings

Sides take turns, with the same texts, which are others in each round. In a turn clients ask for one
text a request, then one request asks for all of them. The table has medians, with the range of the
rounds. Let nothing else run meanwhile.
"""

import argparse
import json
import statistics
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scripts.bench.batching import draw_sentences, seconds_to_answer
from scripts.bench.measure import cpu, header

_MODES = ("one", "list")


@dataclass(frozen=True)
class Side:
    """A server that embeds texts at `url`, and its texts/s in each round, by mode."""

    name: str
    url: str
    rates: dict[str, list[float]] = field(default_factory=lambda: {mode: [] for mode in _MODES})


def main(argv: Sequence[str] | None = None) -> int:
    """Print a header, a line for each turn, and a table."""
    args = _arguments(argv)
    sides: list[Side] = args.sides
    facts = {"count": args.count, "concurrent": args.concurrent, "rounds": args.rounds}
    print(header(cpu=cpu(), **facts), flush=True)
    warm_up = draw_sentences(args.count, seed=0)
    for side in sides:
        _rates(side, warm_up, args.concurrent)
    cosines = _cosines(sides, warm_up)
    for number in range(args.rounds):
        texts = draw_sentences(args.count, seed=number + 1)
        for side in sides:
            rates = _rates(side, texts, args.concurrent)
            for mode in _MODES:
                side.rates[mode].append(rates[mode])
            line = ", ".join(f"{mode} {rates[mode]:.1f}" for mode in _MODES)
            print(f"round {number + 1}, {side.name}: {line} texts/s", flush=True)
    for line in _table(sides, cosines, args):
        print(line)
    return 0


def _rates(side: Side, texts: Sequence[str], concurrent: int) -> dict[str, float]:
    """Return the texts/s of a turn."""
    one_s = seconds_to_answer(side.url, [{"input": text} for text in texts], concurrent)
    list_s = seconds_to_answer(side.url, [{"input": texts}], concurrent=1)
    return {"one": len(texts) / one_s, "list": len(texts) / list_s}


def _cosines(sides: Sequence[Side], texts: Sequence[str]) -> list[float]:
    """Return how near each side's embeddings are to the first's: the least cosine of a text."""
    embeddings = [_embeddings(side.url, texts) for side in sides]
    cosines = []
    for rows in embeddings:
        products = embeddings[0] * rows
        cosines.append(float(products.sum(axis=1).min()))
    return cosines


def _embeddings(url: str, texts: Sequence[str]) -> NDArray[np.float64]:
    """Return the embeddings of texts, one in a row, each of length 1."""
    body = json.dumps({"input": texts}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        entries = json.load(response)["data"]
    rows = np.array([entry["embedding"] for entry in entries])
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float64] = rows / lengths
    return unit


def _table(sides: Sequence[Side], cosines: Sequence[float], args: argparse.Namespace) -> list[str]:
    """Return a Markdown table. Ratios are the first side's rates over a side's in its rounds."""
    first = sides[0]
    titles = ["side", f"{args.concurrent} clients, one text a request, texts/s"]
    titles += [f"{first.name} / side", f"one request of {args.count} texts, texts/s"]
    titles += [f"{first.name} / side", "least cosine"]
    lines = ["", _row(titles), _row(["---"] * len(titles))]
    for side, cosine in zip(sides, cosines, strict=True):
        cells = [side.name]
        for mode in _MODES:
            ratios = []
            for ours, theirs in zip(first.rates[mode], side.rates[mode], strict=True):
                ratios.append(ours / theirs)
            cells.append(_with_range(side.rates[mode], digits=0))
            cells.append(_with_range(ratios, digits=2))
        lines.append(_row([*cells, f"{cosine:.4f}"]))
    return lines


def _with_range(values: Sequence[float], digits: int) -> str:
    low, median, high = min(values), statistics.median(values), max(values)
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _side(text: str) -> Side:
    """Return the side that `NAME=URL` means."""
    name, separator, url = text.partition("=")
    if not separator or not url.startswith("http://"):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=http://...")
    return Side(name, url)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.embeddings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sides", type=_side, nargs="+", metavar="NAME=URL")
    parser.add_argument("--count", type=int, default=256, help="texts of a round")
    parser.add_argument("--concurrent", type=int, default=16, help="clients")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
