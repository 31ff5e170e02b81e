"""The comparison of several sides on the same questions: a plain structure for reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import log

from scripts.cli.ab.asking import Answer, SideAnswers
from scripts.cli.ab.questions import Grader, Question
from scripts.cli.ab.sides import Sampling
from shared.figures import PairedTest, Share, paired_test, percentile, share_of

# The characters of each text that are shown before and after a difference.
_SHOWN = 60


@dataclass(frozen=True)
class Timing:
    """Percentiles in milliseconds."""

    p50: float
    p95: float


@dataclass(frozen=True)
class SideFigures:
    """The figures of one side. Those without a basis are None.

    `accuracy` is of the questions with a right answer, and a failed request is a wrong one. Times
    are of the requests that did not fail. `bits_per_token` and `bits_per_byte` are of the
    references.
    """

    name: str
    dialect: str
    url: str
    model: str | None
    requests: int
    errors: int
    accuracy: Share | None
    accuracy_by_kind: dict[str, Share]
    first_token_ms: Timing | None
    answer_ms: Timing | None
    tokens: int
    tokens_per_s: float
    cost_per_million_tokens: float | None
    bits_per_token: float | None
    bits_per_byte: float | None


@dataclass(frozen=True)
class Difference:
    """The first question to which two sides gave other texts, around the first other character."""

    prompt: str
    at: int
    first: str
    second: str


@dataclass(frozen=True)
class PairFigures:
    """Two sides on the questions that both answered."""

    first: str
    second: str
    compared: int
    equal_texts: int
    first_difference: Difference | None
    accuracy: PairedTest | None


@dataclass(frozen=True)
class Row:
    """A question and what each side answered. `solved` has None where nobody judges."""

    prompt: str
    expected: str | None
    kind: str
    texts: Sequence[str]
    solved: Sequence[bool | None]
    seconds: Sequence[float]
    errors: Sequence[str | None]


@dataclass(frozen=True)
class Comparison:
    """The figures of all sides and pairs, and all answers."""

    sampling: Sampling
    concurrency: int
    grader: Grader
    sides: Sequence[SideFigures]
    pairs: Sequence[PairFigures]
    rows: Sequence[Row]


def compare(
    questions: Sequence[Question],
    sides: Sequence[SideAnswers],
    sampling: Sampling,
    *,
    concurrency: int,
    grader: Grader,
) -> Comparison:
    """Return the figures of sides that were asked the same questions."""
    solved = [_solved(questions, side.answers, grader) for side in sides]
    figures = []
    for side, verdicts in zip(sides, solved, strict=True):
        figures.append(_side_figures(questions, side, verdicts))
    pairs = []
    for one, two in combinations(range(len(sides)), 2):
        pairs.append(_pair_figures(questions, sides[one], sides[two], solved[one], solved[two]))

    rows = []
    for number, question in enumerate(questions):
        answers = [side.answers[number] for side in sides]
        rows.append(
            Row(
                prompt=question.prompt,
                expected=question.answer,
                kind=question.kind,
                texts=[answer.text for answer in answers],
                solved=[verdicts[number] for verdicts in solved],
                seconds=[answer.seconds for answer in answers],
                errors=[answer.error for answer in answers],
            )
        )
    return Comparison(sampling, concurrency, grader, figures, pairs, rows)


def _solved(
    questions: Sequence[Question], answers: Sequence[Answer], grader: Grader
) -> list[bool | None]:
    verdicts: list[bool | None] = []
    for question, answer in zip(questions, answers, strict=True):
        if question.answer is None:
            verdicts.append(None)
        else:
            verdicts.append(answer.error is None and question.is_solved_by(answer.text, grader))
    return verdicts


def _side_figures(
    questions: Sequence[Question], found: SideAnswers, solved: Sequence[bool | None]
) -> SideFigures:
    by_kind: dict[str, list[bool]] = {}
    judged: list[bool] = []
    for question, verdict in zip(questions, solved, strict=True):
        if verdict is not None:
            judged.append(verdict)
            by_kind.setdefault(question.kind, []).append(verdict)

    good = [answer for answer in found.answers if answer.error is None]
    tokens = sum(answer.num_tokens for answer in good)
    rate = tokens / found.seconds
    side = found.side
    cost = None
    if side.cost is not None and rate:
        cost = side.cost / 3600 / rate * 1e6
    bits = 0.0
    num_tokens = 0
    num_bytes = 0
    for question, likelihood in zip(questions, found.likelihoods, strict=True):
        if likelihood is not None and question.reference:
            bits -= likelihood.log_likelihood / log(2)
            num_tokens += likelihood.num_tokens
            num_bytes += len(question.reference.encode())
    return SideFigures(
        name=side.name,
        dialect=side.dialect,
        url=side.url,
        model=side.model,
        requests=len(found.answers),
        errors=len(found.answers) - len(good),
        accuracy=share_of(sum(judged), len(judged)) if judged else None,
        accuracy_by_kind={
            kind: share_of(sum(verdicts), len(verdicts)) for kind, verdicts in by_kind.items()
        },
        first_token_ms=_timing([one.first_s for one in good if one.first_s is not None]),
        answer_ms=_timing([one.seconds for one in good]),
        tokens=tokens,
        tokens_per_s=rate,
        cost_per_million_tokens=cost,
        bits_per_token=bits / num_tokens if num_tokens else None,
        bits_per_byte=bits / num_bytes if num_bytes else None,
    )


def _timing(seconds: list[float]) -> Timing | None:
    if not seconds:
        return None
    seconds.sort()
    return Timing(p50=1000 * percentile(seconds, 50), p95=1000 * percentile(seconds, 95))


def _pair_figures(
    questions: Sequence[Question],
    one: SideAnswers,
    two: SideAnswers,
    solved_by_one: Sequence[bool | None],
    solved_by_two: Sequence[bool | None],
) -> PairFigures:
    compared = 0
    equal = 0
    difference = None
    for question, a, b in zip(questions, one.answers, two.answers, strict=True):
        if a.error or b.error:
            continue
        compared += 1
        if a.text == b.text:
            equal += 1
        elif difference is None:
            difference = _difference(question.prompt, a.text, b.text)

    first = []
    second = []
    for of_one, of_two in zip(solved_by_one, solved_by_two, strict=True):
        if of_one is not None and of_two is not None:
            first.append(of_one)
            second.append(of_two)
    return PairFigures(
        first=one.side.name,
        second=two.side.name,
        compared=compared,
        equal_texts=equal,
        first_difference=difference,
        accuracy=paired_test(first, second) if first else None,
    )


def _difference(prompt: str, one: str, two: str) -> Difference:
    at = min(len(one), len(two))
    for index, (a, b) in enumerate(zip(one, two, strict=False)):
        if a != b:
            at = index
            break
    start = max(0, at - _SHOWN)
    end = at + _SHOWN
    return Difference(prompt, at, one[start:end], two[start:end])
