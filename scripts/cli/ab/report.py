"""The reports of a comparison: JSON, Markdown for people and pull requests, and one HTML file.

The HTML file needs no other file and no network; its plots are SVG. They are drawn by matplotlib,
which `pip install 'aios-hrm-fleet[report]'` brings; without it the report has tables only.
"""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from html import escape
from importlib.util import find_spec
from typing import TYPE_CHECKING

from scripts.cli.ab.comparison import Comparison, PairFigures, SideFigures, Timing
from shared.figures import PairedTest, Share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Writer = Callable[[Comparison], str]
"""Returns a report."""

_COLUMNS = (
    "side",
    "right",
    "first token p50 / p95, ms",
    "answer p50 / p95, ms",
    "tokens/s",
    "cost of 1 M tokens",
    "bits/token",
    "bits/byte",
    "errors",
)


def as_json(comparison: Comparison) -> str:
    return json.dumps(asdict(comparison), indent=2) + "\n"


def as_markdown(comparison: Comparison) -> str:
    """Return the tables and the sentences of a comparison, without the single answers."""
    lines = [_asked(comparison), ""]
    lines += markdown_table(_COLUMNS, [_cells(side) for side in comparison.sides])
    kinds = _kinds(comparison)
    if kinds:
        lines.append("")
        names = [side.name for side in comparison.sides]
        lines += markdown_table(["right", *names], [_kind_cells(comparison, k) for k in kinds])
    for pair in comparison.pairs:
        lines.append("")
        lines += [f"- {sentence}" for sentence in _sentences(pair)]
    return "\n".join(lines) + "\n"


def as_html(comparison: Comparison) -> str:
    """Return one page with the tables, the plots and every answer."""
    parts = [f"<p>{escape(_asked(comparison))}</p>"]
    parts.append(html_table(_COLUMNS, [_cells(side) for side in comparison.sides]))
    kinds = _kinds(comparison)
    if kinds:
        names = [side.name for side in comparison.sides]
        parts.append(html_table(["right", *names], [_kind_cells(comparison, k) for k in kinds]))
    sentences = []
    for pair in comparison.pairs:
        sentences += [f"<li>{escape(sentence)}</li>" for sentence in _sentences(pair)]
    parts.append(f"<ul>{''.join(sentences)}</ul>")
    if find_spec("matplotlib") is not None:
        parts.append(_plots(comparison))
    parts.append(_answers(comparison))
    return page_of("A/B comparison", parts)


def _asked(comparison: Comparison) -> str:
    sampling = comparison.sampling
    how = "greedy"
    if sampling.temperature:
        how = f"temperature {sampling.temperature}, top_p {sampling.top_p}, seed {sampling.seed}"
    return (
        f"{len(comparison.rows)} questions to each side, {how}, at most {sampling.max_tokens} "
        f"tokens, {comparison.concurrency} at a time, one side after the other."
    )


def _cells(side: SideFigures) -> list[str]:
    return [
        side.name,
        share_cell(side.accuracy),
        timing_cell(side.first_token_ms),
        timing_cell(side.answer_ms),
        f"{side.tokens_per_s:.0f}",
        _number(side.cost_per_million_tokens, digits=4),
        _number(side.bits_per_token, digits=3),
        _number(side.bits_per_byte, digits=3),
        f"{side.errors} of {side.requests}",
    ]


def share_cell(share: Share | None) -> str:
    if share is None:
        return "-"
    interval = f"{100 * share.low:.1f} to {100 * share.high:.1f}"
    return f"{100 * share.value:.1f} % ({interval}), {share.count} of {share.total}"


def timing_cell(timing: Timing | None) -> str:
    return "-" if timing is None else f"{timing.p50:.0f} / {timing.p95:.0f}"


def _number(value: float | None, *, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _kinds(comparison: Comparison) -> list[str]:
    """Return the kinds of questions, if there is more than one."""
    kinds = sorted({row.kind for row in comparison.rows if row.expected is not None})
    return kinds if len(kinds) > 1 else []


def _kind_cells(comparison: Comparison, kind: str) -> list[str]:
    shares = [side.accuracy_by_kind.get(kind) for side in comparison.sides]
    return [kind or "(none)", *[share_cell(share) for share in shares]]


def _sentences(pair: PairFigures) -> list[str]:
    first = pair.first
    second = pair.second
    sentences = [
        f"{first} and {second} wrote equal texts for {pair.equal_texts} of {pair.compared} questions."
    ]
    if pair.accuracy is not None:
        sentences.append(_paired_sentence(first, second, pair.accuracy))
    difference = pair.first_difference
    if difference is not None:
        sentences.append(
            f"The first other text, from character {difference.at}, to {difference.prompt!r}: "
            f"{difference.first!r} and {difference.second!r}."
        )
    return sentences


def _paired_sentence(first: str, second: str, test: PairedTest) -> str:
    verdict = "The difference may be chance"
    if test.p < 0.05:
        better = first if test.difference > 0 else second
        verdict = f"{better} is better, and chance would hardly do that"
    return (
        f"{test.only_first} questions only {first} solved, {test.only_second} only {second}: "
        f"{100 * test.difference:+.1f} points ({100 * test.low:+.1f} to {100 * test.high:+.1f}), "
        f"McNemar's exact p = {test.p:.3g}. {verdict}."
    )


def markdown_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for row in rows:
        cells = [cell.replace("|", "\\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def html_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in names)
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
        lines.append(f"<tr><th scope=row>{escape(first)}</th>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _answers(comparison: Comparison) -> str:
    names = [side.name for side in comparison.sides]
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in ("question", *names))
    lines = []
    for row in comparison.rows:
        expected = "" if row.expected is None else f"<br><b>{escape(row.expected)}</b>"
        cells = ""
        for text, is_solved, error in zip(row.texts, row.solved, row.errors, strict=True):
            mark = {True: "right", False: "wrong", None: ""}[is_solved]
            cells += f'<td class="{mark}">{mark} <pre>{escape(error or text)}</pre></td>'
        lines.append(f"<tr><th scope=row>{escape(row.prompt)}{expected}</th>{cells}</tr>")
    return (
        f"<details><summary>All {len(comparison.rows)} answers</summary><table>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></details>"
    )


def _plots(comparison: Comparison) -> str:
    """Return an SVG of the shares that were right, and of how soon answers were there."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    share_axes, time_axes = figure.subplots(1, 2)
    judged = [side for side in comparison.sides if side.accuracy is not None]
    for place, side in enumerate(judged):
        share = side.accuracy
        assert share is not None
        share_axes.barh(place, 100 * share.value)
        share_axes.plot([100 * share.low, 100 * share.high], [place, place], color="black")
    share_axes.set_yticks(range(len(judged)), [side.name for side in judged])
    share_axes.set(xlabel="right, % (line: interval of 95 %)", xlim=(0, 100))

    for number, side in enumerate(comparison.sides):
        seconds = sorted(
            row.seconds[number] for row in comparison.rows if row.errors[number] is None
        )
        shares = [(place + 1) / len(seconds) for place in range(len(seconds))]
        time_axes.step([1000 * second for second in seconds], shares, label=side.name)
    time_axes.set(xlabel="answered within, ms", ylabel="share of questions", ylim=(0, 1))
    time_axes.legend()
    return svg_of(figure)


def svg_of(figure: "Figure") -> str:
    """Return a figure of matplotlib as an SVG to stand in a page, the same each time."""
    from matplotlib import rc_context

    picture = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "ab"}):
        figure.savefig(picture, format="svg", metadata={"Date": None})
    svg = picture.getvalue()
    return f"<figure>{svg[svg.index('<svg') :]}</figure>"


def page_of(title: str, parts: Sequence[str]) -> str:
    """Return a page of HTML with these parts, which needs nothing else."""
    return _PAGE.replace("{title}", escape(title)).replace("{body}", "\n".join(parts))


_PAGE = """<!doctype html>
<html lang=en>
<head>
<meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { border: 1px solid #8888; padding: .3rem .6rem; text-align: left; vertical-align: top }
td.right { border-left: 4px solid #18794e }
td.wrong { border-left: 4px solid #c62a2f }
pre { margin: 0; white-space: pre-wrap }
figure { background: white; margin: 1rem 0; overflow-x: auto }
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
