"""The load tools, small: what they ask for, what they count, and a refusal that is told as one."""

import itertools
import json
import math

import pytest

from scripts.bench import load
from scripts.bench.loads import curve
from scripts.bench.loads.caller import Caller, Heard
from scripts.bench.loads.drive import closed_loop
from scripts.bench.loads.plan import ClientRequest, Length, Mix, classes_of, lengths_of
from scripts.bench.loads.tally import Window, summary
from scripts.chaos.processes import fleet


def test_lengths_and_classes_are_drawn_by_their_weights() -> None:
    mix = Mix(lengths_of("40:16x3,200:64"), classes_of("interactive=1,bulk=3"))
    asks = list(itertools.islice(mix.asks(0), 4000))
    assert {(len(ask.prompts[0]), ask.tokens) for ask in asks} == {(40, 16), (200, 64)}
    assert sum(ask.tokens == 16 for ask in asks) / 4000 == pytest.approx(0.75, abs=0.03)
    assert sum(ask.priority == "bulk" for ask in asks) / 4000 == pytest.approx(0.75, abs=0.03)
    assert mix.mean_tokens == 28
    assert asks == list(itertools.islice(mix.asks(0), 4000)), "the same seed asks for the same"


def test_arrivals_know_nothing_of_each_other() -> None:
    """Poisson: gaps have the mean of their rate, and as much spread as mean; even ones have
    none."""
    mix = Mix(((Length(8, 1), 1.0),))
    for is_poisson, spread in ((True, 0.1), (False, 0.0)):
        due = [ask.at_s for ask in itertools.islice(mix.asks(0, 10.0, is_poisson=is_poisson), 5000)]
        gaps = [later - earlier for earlier, later in itertools.pairwise(due)]
        mean = sum(gaps) / len(gaps)
        assert mean == pytest.approx(0.1, rel=0.05)
        assert math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) == pytest.approx(
            spread, abs=0.01
        )


@pytest.mark.parametrize("text", ["", "40", "40:0", "a:b", "40:16xmany"])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        lengths_of(text)


def test_a_tally_counts_what_ended_in_its_window() -> None:
    ask = ClientRequest(0.0, ("x",), 8, "default")
    heard = [Heard(ask, 200, "", 0.1, 0.8, 1.0, at, 8) for at in (0.5, 1.5, 2.5)]
    heard += [
        Heard(ask, 429, "queue_full", ended_s=0.002, ended_at=1.2),
        Heard(ask, 0, "ConnectionResetError", ended_at=9),
    ]
    told = summary(heard, Window(1.0, 3.0))
    assert (told.asked, told.answered_per_s, told.tokens_per_s) == (3, 1.0, 8.0)
    assert told.refused == {"429 queue_full": 1}
    assert told.failed == {"0 ConnectionResetError": 1}, "what failed counts whenever it did"
    assert told.ttft_ms == (100, 100, 100)
    assert told.token_ms == pytest.approx((100, 100, 100))
    assert told.refusal_ms == (2, 2, 2)


def test_a_request_has_as_many_prompts_as_were_asked_for() -> None:
    (ask,) = itertools.islice(Mix(lengths_of("40:16"), num_prompts=8).asks(0), 1)
    assert len({*ask.prompts}) == 8
    heard = [Heard(ask, 200, "", 0.1, 0.4, 0.5, ended_at=1.5, tokens=8 * 16)]
    assert summary(heard, Window(1.0, 2.0)).token_ms == pytest.approx((20, 20, 20)), (
        "of one answer's tokens"
    )


async def test_loads_on_a_fleet(capsys: pytest.CaptureFixture[str]) -> None:
    """A closed loop is answered in full; with no room in the queue callers are refused, and told
    so."""
    echo = ("--model", "echo=echo", "--max-batch-size", "2")
    async with fleet(
        1,
        worker="scripts.chaos.worker",
        worker_flags=echo,
        front_flags=("--max-queue-depth", "2"),
        env={"AIOS_CHAOS_STEP_S": "0.005"},
    ) as running:
        caller = Caller(running.fronts[0].url)
        heard, window = await closed_loop(
            [caller], Mix(((Length(8, 4), 1.0),)).asks(0), 1.0, clients=1
        )
        told = summary(heard, window)
        assert told.answered_per_s > 2
        assert all(item.tokens == 4 and item.is_answered for item in heard)
        two = Mix(((Length(8, 4), 1.0),), num_prompts=2)
        heard, window = await closed_loop([caller], two.asks(0), 0.5, clients=1)
        assert {item.tokens for item in heard if item.is_answered} == {8}
        heard, window = await closed_loop(
            [caller], Mix(((Length(8, 40), 1.0),)).asks(0), 1.0, clients=8
        )
        assert set(summary(heard, window).refused) == {"429 queue_full"}
        caller.close()


def test_the_command_prints_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody listens there: every request fails, and the exit status says so."""
    from tests.fixtures.redis_server import free_port

    status = load.main(
        ["--url", f"http://127.0.0.1:{free_port()}", "--rate", "20", "--seconds", "0.3", "--json"]
    )
    told = json.loads(capsys.readouterr().out)
    assert (status, set(told["all"]["failed"])) == (1, {"0 ConnectionRefusedError"})


async def test_a_curve_runs(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--seconds", "3", "--warm-up", "0", "--lengths", "8:20")
    await curve.main(["--shapes", "1x1", "--shares", "0.5,1.5", *small])
    lines = capsys.readouterr().out.splitlines()
    assert sum("of peak" in line for line in lines) == 2
