"""Measure this fleet beside what people would use instead.

python -m scripts.bench.peers FOLDER [--sides ours,ours-auto,vllm] [--dtypes float32,bfloat16]

The sides have the same weights, prompts and machine. Each is started, gets its loads and is ended,
turn by turn, for some rounds. Peers are installed in FOLDER, where the nets are kept, too; a side
that cannot be had is left out, with the reason. The table has medians, with the range of the
rounds. Let nothing else run meanwhile.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.bench import model
from scripts.bench.measure import cpu, header
from scripts.bench.peers.load import Figures
from scripts.bench.peers.scoring import draw_questions
from scripts.bench.peers.sides import (
    DTYPES,
    Case,
    Load,
    Scoring,
    Side,
    Turn,
    Unavailable,
    all_sides,
)
from scripts.bench.prompts import draw_prompts

_NETS = {"hrm-text": model.hrm_text, "causal": model.causal}
_BASE = "vllm"
_SHAPES = ("ours-1", "ours-n")
"""The sides that are this fleet in a shape chosen by hand."""

_SCORING_CLIENTS = 4


def main(argv: Sequence[str] | None = None) -> None:
    """Print a header, a line for each turn as it ends, and a table of each case."""
    args = _parser().parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    print(header(cpu=cpu(), size=args.size, rounds=args.rounds, tokens=args.tokens), flush=True)

    sides = all_sides(args.folder)
    chosen = {}
    for name in args.sides:
        try:
            sides[name].set_up()
            chosen[name] = sides[name]
        except Unavailable as error:
            print(f"{sides[name].name}: left out: {error}", flush=True)

    for net, dtype in itertools.product(args.nets, args.dtypes):
        case = Case(net, _NETS[net](args.folder, args.size), dtype)
        turns = _turns(case, chosen, args)
        for line in _table(case, chosen, turns, args.clients):
            print(line, flush=True)


def _turns(case: Case, sides: dict[str, Side], args: argparse.Namespace) -> dict[str, list[Turn]]:
    """Return the turns of each side that does the case."""
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    for number in range(args.rounds):
        loads = _loads(args, seed=number)
        scoring = _scoring(args, seed=number)
        for name in list(turns):
            log = args.folder / f"{name}.log"
            try:
                turn = sides[name].measure(case, loads, log, scoring)
            except (Unavailable, RuntimeError) as error:
                print(f"{sides[name].name}, {case.model} {case.dtype}: left out: {error}")
                del turns[name]
                continue
            turns[name].append(turn)
            rates = " ".join(f"{figures.tokens_per_s:.1f}" for figures in turn.figures)
            if turn.scores_per_s is not None:
                rates += f" tokens/s, {turn.scores_per_s:.1f} scores/s"
            print(f"round {number + 1}, {case.model} {case.dtype}, {name}: {rates}")
            sys.stdout.flush()
    return turns


def _loads(args: argparse.Namespace, seed: int) -> list[Load]:
    """Return a load for each number of clients, `waves` answers for each client."""
    vocab = model.SIZES[args.size].vocab
    least, most = args.prompt_tokens
    loads = []
    for num_clients in args.clients:
        count = (args.waves + 1) * num_clients
        prompts = draw_prompts(count, least, most, vocab, seed=1000 * seed + num_clients)
        load = Load(
            num_clients,
            warm_up=prompts[:num_clients],
            prompts=prompts[num_clients:],
            num_tokens=args.tokens,
        )
        loads.append(load)
    return loads


def _scoring(args: argparse.Namespace, seed: int) -> Scoring | None:
    """Return the questions that each side scores: contexts of 512 tokens, 4 answers of 8."""
    if not args.questions:
        return None
    questions = draw_questions(
        args.questions + 1, context=512, continuations=4, length=8, seed=seed
    )
    return Scoring(_SCORING_CLIENTS, questions)


def _table(
    case: Case, sides: dict[str, Side], turns: dict[str, list[Turn]], clients: Sequence[int]
) -> list[str]:
    """Return a Markdown table of a case: for each number of clients the rate and the waits."""
    titles = ["side", "start, s", "memory, MiB"]
    for num_clients in clients:
        titles += [f"tokens/s at {num_clients}", "TTFT p50, ms", "gap p50 / p95, ms"]
    titles += ["scores/s", "settings"]
    lines = ["", f"{case.model}, {case.dtype}:", "", _row(titles), _row(["---"] * len(titles))]
    for name, rounds in turns.items():
        cells = [
            sides[name].name,
            _median([turn.start_s for turn in rounds], "{:.1f}"),
            _median([turn.memory_mib for turn in rounds], "{:.0f}"),
        ]
        for index in range(len(clients)):
            figures = [turn.figures[index] for turn in rounds]
            cells.append(_with_range([one.tokens_per_s for one in figures]))
            cells.append(_median_of(figures, lambda one: one.ttft_p50_ms))
            p50 = _median_of(figures, lambda one: one.gap_p50_ms)
            p95 = _median_of(figures, lambda one: one.gap_p95_ms)
            cells.append(f"{p50} / {p95}")
        scores = [turn.scores_per_s for turn in rounds if turn.scores_per_s is not None]
        cells.append(_with_range(scores) if scores else "-")
        lines.append(_row([*cells, sides[name].settings]))
    lines += _ratios(turns, clients)
    return lines


def _ratios(turns: dict[str, list[Turn]], clients: Sequence[int]) -> list[str]:
    """Return a line of each side's rates as multiples of vLLM's, in the same round."""
    lines = []
    base = turns.get(_BASE, [])
    for name, rounds in turns.items():
        if name == _BASE or not base:
            continue
        parts = []
        for index, num_clients in enumerate(clients):
            ratios = []
            for one, other in zip(rounds, base, strict=True):
                ratios.append(one.figures[index].tokens_per_s / other.figures[index].tokens_per_s)
            parts.append(f"at {num_clients} {statistics.median(ratios):.2f}")
        ratios = []
        for one, other in zip(rounds, base, strict=True):
            if one.scores_per_s is not None and other.scores_per_s is not None:
                ratios.append(one.scores_per_s / other.scores_per_s)
        if ratios:
            parts.append(f"scores/s {statistics.median(ratios):.2f}")
        lines.append(f"{name} / {_BASE}, tokens/s: {', '.join(parts)}")
    return ["", *lines, *_beside_best_shape(turns, clients)]


def _beside_best_shape(turns: dict[str, list[Turn]], clients: Sequence[int]) -> list[str]:
    """Return a line of the fleet as it starts beside the best shape by hand, in the same round."""
    shapes = [turns[name] for name in _SHAPES if turns.get(name)]
    if len(shapes) < len(_SHAPES) or not turns.get("ours"):
        return []
    parts = []
    for index, num_clients in enumerate(clients):
        ratios = []
        for one, *others in zip(turns["ours"], *shapes, strict=True):
            best = max(other.figures[index].tokens_per_s for other in others)
            ratios.append(one.figures[index].tokens_per_s / best)
        parts.append(f"at {num_clients} {statistics.median(ratios):.2f}")
    return [f"ours / best shape by hand, tokens/s: {', '.join(parts)}"]


def _with_range(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _median(values: Sequence[float], form: str) -> str:
    return form.format(statistics.median(values))


def _median_of(figures: Sequence[Figures], read: Callable[[Figures], float | None]) -> str:
    """Return the median of a figure, or a dash if a side does not tell it."""
    values = []
    for one in figures:
        value = read(one)
        if value is not None:
            values.append(value)
    return _median(values, "{:.1f}") if values else "-"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a parser of names with commas between them."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return parse


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sides = list(all_sides(Path()))
    parser.add_argument("folder", type=Path, help="where peers are installed and nets are kept")
    parser.add_argument("--sides", type=_names(sides), default=sides, help=f"of {', '.join(sides)}")
    parser.add_argument("--nets", type=_names(list(_NETS)), default=list(_NETS), help="which nets")
    parser.add_argument("--dtypes", type=_names(DTYPES), default=list(DTYPES), help="of weights")
    parser.add_argument("--clients", type=_numbers, default=[1, 8, 16], help="clients of each load")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--waves", type=int, default=4, help="answers for each client")
    parser.add_argument(
        "--questions",
        type=int,
        default=16,
        help="contexts of 512 tokens to be scored, with 4 continuations of 8 each (0: none)",
    )
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of an answer")
    parser.add_argument(
        "--prompt-tokens", type=int, nargs=2, default=[80, 95], help="least and most of a prompt"
    )
    parser.add_argument("--size", choices=list(model.SIZES), default="reference", help="of nets")
    return parser


if __name__ == "__main__":
    main()
