"""The load tools draw requests by their weights, count answers and report refusals."""

import itertools
import json
import math

import pytest

from scripts.bench import load
from scripts.bench.loads import curve
from scripts.bench.loads.caller import Caller, Outcome
from scripts.bench.loads.drive import closed_loop
from scripts.bench.loads.plan import ClientRequest, Length, Mix, classes_of, lengths_of
from scripts.bench.loads.tally import Window, summary
from scripts.chaos.processes import fleet


def test_lengths_and_classes_are_drawn_by_their_weights() -> None:
    mix = Mix(lengths_of("40:16x3,200:64"), classes_of("interactive=1,bulk=3"))

    requests = list(itertools.islice(mix.requests(0), 4000))

    num_short = 0
    num_bulk = 0
    shapes = set()
    for request in requests:
        shapes.add((len(request.prompts[0]), request.tokens))
        if request.tokens == 16:
            num_short += 1
        if request.priority == "bulk":
            num_bulk += 1
    assert shapes == {(40, 16), (200, 64)}
    assert num_short / 4000 == pytest.approx(0.75, abs=0.03)
    assert num_bulk / 4000 == pytest.approx(0.75, abs=0.03)
    assert mix.mean_tokens == 28
    repeated = list(itertools.islice(mix.requests(0), 4000))
    assert requests == repeated, "the same seed draws the same requests"


def test_arrivals_know_nothing_of_each_other() -> None:
    """The gaps between arrivals have the mean of their rate.

    Poisson arrivals have a standard deviation as large as the mean, and even ones have none.
    """
    for is_poisson, expected_deviation_s in ((True, 0.1), (False, 0.0)):
        gaps = gaps_of(num_gaps=4999, rate_per_s=10.0, is_poisson=is_poisson)

        mean = sum(gaps) / len(gaps)
        variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
        assert mean == pytest.approx(0.1, rel=0.05)
        assert math.sqrt(variance) == pytest.approx(expected_deviation_s, abs=0.01)


def gaps_of(*, num_gaps: int, rate_per_s: float, is_poisson: bool) -> list[float]:
    requests = Mix(((Length(8, 1), 1.0),)).requests(0, rate_per_s, is_poisson=is_poisson)
    gaps = []
    previous = next(requests)
    for request in itertools.islice(requests, num_gaps):
        gaps.append(request.at_s - previous.at_s)
        previous = request
    return gaps


@pytest.mark.parametrize("text", ["", "40", "40:0", "a:b", "40:16xmany"])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        lengths_of(text)


def test_a_tally_counts_what_ended_in_its_window() -> None:
    request = ClientRequest(0.0, ("x",), 8, "default")
    answers = [
        answered(request, ended_at=0.5),
        answered(request, ended_at=1.5),
        answered(request, ended_at=2.5),
        Outcome(request, 429, "queue_full", ended_s=0.002, ended_at=1.2),
        Outcome(request, 0, "ConnectionResetError", ended_at=9),
    ]

    totals = summary(answers, Window(1.0, 3.0))

    assert totals.asked == 3
    assert totals.answered_per_s == 1.0
    assert totals.tokens_per_s == 8.0
    assert totals.refused == {"429 queue_full": 1}
    assert totals.failed == {"0 ConnectionResetError": 1}, "a failure counts at any time"
    assert totals.ttft_ms == (100, 100, 100)
    assert totals.token_ms == pytest.approx((100, 100, 100))
    assert totals.refusal_ms == (2, 2, 2)


def answered(request: ClientRequest, ended_at: float) -> Outcome:
    """Return an answer of 8 tokens, the first after 0.1 s and the last after 0.8 s."""
    return Outcome(
        request,
        200,
        "",
        first_token_s=0.1,
        last_token_s=0.8,
        ended_s=1.0,
        ended_at=ended_at,
        tokens=8,
    )


def test_a_request_has_as_many_prompts_as_were_asked_for() -> None:
    """The time of a token is that of one answer's tokens."""
    request = next(Mix(lengths_of("40:16"), num_prompts=8).requests(0))
    assert len(set(request.prompts)) == 8

    # 15 tokens follow the first one of each answer, in 0.3 s.
    answer = Outcome(
        request,
        200,
        "",
        first_token_s=0.1,
        last_token_s=0.4,
        ended_s=0.5,
        ended_at=1.5,
        tokens=8 * 16,
    )
    assert summary([answer], Window(1.0, 2.0)).token_ms == pytest.approx((20, 20, 20))


async def test_loads_on_a_fleet(capsys: pytest.CaptureFixture[str]) -> None:
    """A closed loop is answered in full.

    Callers are refused when the queue is full, and the summary counts them as refused.
    """
    echo = ("--model", "echo=echo", "--max-batch-size", "2")
    async with fleet(
        1,
        worker="scripts.chaos.worker",
        worker_flags=echo,
        front_flags=("--max-queue-depth", "2"),
        env={"AIOS_CHAOS_STEP_S": "0.005"},
    ) as running:
        caller = Caller(running.fronts[0].url)

        short = Mix(((Length(8, 4), 1.0),))
        answers, window = await closed_loop([caller], short.requests(0), 3.0, clients=1)
        assert len(answers) > 1
        whole = until_the_last(answers, window)
        assert summary(answers, whole).answered_per_s == len(answers) / whole.seconds
        for answer in answers:
            assert answer.is_answered
            assert answer.tokens == 4

        pairs = Mix(((Length(8, 4), 1.0),), num_prompts=2)
        answers, window = await closed_loop([caller], pairs.requests(0), 0.5, clients=1)
        assert {answer.tokens for answer in answers if answer.is_answered} == {8}

        # Eight clients are more than the two in the batch and the two in the queue.
        long = Mix(((Length(8, 40), 1.0),))
        answers, window = await closed_loop([caller], long.requests(0), 1.0, clients=8)
        whole = until_the_last(answers, window)
        assert set(summary(answers, whole).refused) == {"429 queue_full"}
        caller.close()


def until_the_last(answers: list[Outcome], window: Window) -> Window:
    """Return the window with the time until the last answer, which may be long on a busy machine."""
    return Window(window.started, max(answer.ended_at for answer in answers))


def test_the_command_prints_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    """Every request to a free port fails, and so does the command."""
    from tests.fixtures.redis_server import free_port

    url = f"http://127.0.0.1:{free_port()}"
    status = load.main(["--url", url, "--rate", "20", "--seconds", "0.3", "--json"])

    assert status == 1
    document = json.loads(capsys.readouterr().out)
    assert set(document["all"]["failed"]) == {"0 ConnectionRefusedError"}


async def test_a_curve_runs(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--seconds", "3", "--warm-up", "0", "--lengths", "8:20")
    await curve.main(["--shapes", "1x1", "--shares", "0.5,1.5", *small])
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if "of peak" in line]) == 2
