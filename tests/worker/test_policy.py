"""The torch-free half of the engine as properties: text, requests, engine on the echo runner."""

from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from shared.errors import FleetError
from shared.messages import Done, Failed, Generate, Sampling, Score, Scored
from tests.fixtures.worker.stepping import end_of, run
from worker.engine.engine import Engine
from worker.engine.request import Emission, SequenceWork
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Encoded, Slice, StepResult
from worker.runners.echo import Echo
from worker.text.detokenizer import TextStream


def utf8(ids: "list[int] | tuple[int, ...]") -> str:
    return bytes(ids).decode("utf-8", errors="replace")


@settings(max_examples=300, deadline=None)
@given(
    st.text("aжñ😀 <|", max_size=30),
    st.lists(st.text("aж😀 <|", min_size=1, max_size=4), max_size=3),
)
def test_streamed_text_is_the_whole_text_cut_at_the_first_stop(text: str, stop: list[str]) -> None:
    """B65, T10: byte tokens, so that characters and stop strings cross token boundaries; no half
    character ever."""
    stream = TextStream(lambda ids: utf8(list(ids)), tuple(stop))
    said = []
    for byte in text.encode():
        said.append(stream.push(byte))
        assert "\ufffd" not in said[-1]
        if stream.is_stopped:
            break
    whole = "".join(said) + stream.flush()
    ends = [(text.find(item) + len(item), text.find(item)) for item in stop if item in text]
    assert whole == (text[: min(ends)[1]] if ends else text)
    assert stream.is_stopped == bool(ends)


def test_the_cut_does_not_depend_on_token_boundaries() -> None:
    """`<` is complete before `a<<` is, whether they come in one token or in three."""
    for tokens in (["a<<"], ["a", "<", "<"], ["a<", "<"]):
        stream = TextStream(
            lambda ids, tokens=tokens: "".join(tokens[i] for i in ids), ("<", "a<<")
        )  # type: ignore[misc]
        assert "".join(stream.push(i) for i in range(len(tokens))) == "a"


def test_text_that_may_become_a_stop_string_is_held_back() -> None:
    stream = TextStream(lambda ids: utf8(list(ids)), ("END",))
    assert [stream.push(byte) for byte in b"xENy"] == ["x", "", "", "ENy"]


def test_without_stop_strings_nothing_is_held_back() -> None:
    stream = TextStream(lambda ids: utf8(list(ids)))
    assert [stream.push(byte) for byte in b"ab"] == ["a", "b"]


def test_after_a_stop_string_nothing_comes() -> None:
    stream = TextStream(lambda ids: utf8(list(ids)), ("END",))
    assert "".join(stream.push(byte) for byte in b"a END b END") == "a "
    assert stream.flush() == ""


def test_a_stop_string_that_came_too_early_is_text_and_stays_that() -> None:
    """The first "ab" is complete before it may stop, inside what is held back for another one; the
    second one stops."""
    stream = TextStream(lambda ids: utf8(list(ids)), ("ab", "xabyz"))
    said = [stream.push(byte, may_stop=place > 2) for place, byte in enumerate(b"xabq ab")]
    assert said == ["", "", "", "xabq", " ", "", ""]
    assert stream.is_stopped
    alone = TextStream(lambda ids: utf8(list(ids)), ("ab",))
    assert [alone.push(byte, may_stop=False) for byte in b"ab"] == ["", "ab"]


def test_the_beginning_of_a_stop_string_is_held_back_inside_a_token() -> None:
    tokens = ["a xE", "ND"]
    stream = TextStream(lambda ids: "".join(tokens[i] for i in ids), ("END",))
    assert [stream.push(0), stream.push(1)] == ["a x", ""]
    assert stream.is_stopped


@pytest.mark.parametrize(("before", "token"), [("a", "b"), ("", "é"), ("é", "b")])
def test_what_a_token_would_add_is_told_beforehand(before: str, token: str) -> None:
    """Whole characters, and nothing of one that is unfinished; asking changes nothing."""
    *first, last = token.encode()
    stream = TextStream(lambda ids: utf8(list(ids)))
    assert "".join(stream.push(byte) for byte in before.encode()) == before
    for byte in first:
        assert stream.peek(byte) == ""
        assert stream.push(byte) == ""
    assert [stream.peek(last), stream.peek(last), stream.push(last)] == [token] * 3


def test_an_unfinished_character_comes_out_at_the_end() -> None:
    stream = TextStream(lambda ids: utf8(list(ids)))
    assert [stream.push(byte) for byte in "é".encode()[:1]] == [""]
    assert stream.flush() == "\ufffd"


def echo() -> Echo:
    return Echo(RunnerOptions(path="echo", max_batch=3, context_window=64))


def ended(emissions: list[Emission]) -> dict[str, Done | Failed]:
    ends = [(item.key, item.ended) for item in emissions if item.ended is not None]
    assert len(ends) == len(dict(ends)), "a job ended twice"
    return {job: end for job, end in ends if end is not None}


def test_finish_reasons_and_counts() -> None:
    """A45, A46, T10: stop string, end token and cap, each with its reason and exact token
    counts."""
    tasks = [
        Generate("abc", Sampling(max_tokens=7, seed=0)),
        Generate("say eos", Sampling(max_tokens=60, seed=0)),
        Generate("abcd", Sampling(max_tokens=60, seed=0, stop=("cd", "zz"))),
    ]
    emissions = run(echo(), tasks, [[], [], []])
    texts = ["".join(item.text for item in emissions if item.key == str(i)) for i in range(3)]
    assert texts == ["abcabca", "say eos", "ab"]
    assert ended(emissions) == {
        "0": Done("length", 3, 7),
        "1": Done("stop", 7, 8),
        "2": Done("stop", 4, 4),
    }


def test_a_failing_sequence_fails_alone() -> None:
    """P7 in the small: batch mates of a sequence that breaks the model go on."""

    class Fragile(Echo):
        def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
            if any(part.sequence.encoded.prompt_ids[0] == ord("!") for part in slices):
                raise RuntimeError("bad luck")
            return super().step(slices)

    tasks = [Generate(text, Sampling(max_tokens=4, seed=0)) for text in ("abc", "!", "xyz")]
    runner = Fragile(RunnerOptions(path="echo", max_batch=3))
    ends = ended(run(runner, tasks, [[], [], []]))
    assert isinstance(ends["1"], Failed) and "bad luck" in ends["1"].message
    assert ends["0"] == ends["2"] == Done("length", 3, 4)


def test_ids_that_are_no_characters_do_not_break_the_echo() -> None:
    """Half a surrogate pair cannot be written as UTF-8: it is shown as U+FFFD."""
    emissions = run(echo(), [Generate((0xD800, 97), Sampling(max_tokens=2, seed=0))], [[]])
    assert "".join(item.text for item in emissions) == "\ufffda"


def test_abort_frees_the_place_at_once() -> None:
    """P6: nothing more is said of an aborted job, running or waiting, and the others are as
    before."""
    emissions: list[Emission] = []
    engine = Engine(echo(), emissions.extend)
    sampling = Sampling(max_tokens=20, seed=0)
    for i in range(5):
        engine.submit(SequenceWork(str(i), Encoded((97, 98), max_tokens=20), sampling))
    engine.step()
    engine.abort("0")
    engine.abort("4")
    seen = len(emissions)
    while engine.has_work:
        engine.step()
    assert not {item.key for item in emissions[seen:]} & {"0", "4"}
    assert set(ended(emissions)) == {"1", "2", "3"}


def test_a_replayed_answer_that_was_complete_only_gets_its_end() -> None:
    """A takeover after the last token and before the end: nothing is said twice."""
    emissions: list[Emission] = []
    engine = Engine(echo(), emissions.extend)
    engine.submit(
        SequenceWork(
            "a", Encoded((97,), max_tokens=3), Sampling(3, 0), replayed_ids=((97, 97, 97),)
        )
    )
    while engine.has_work:
        engine.step()
    assert emissions == [Emission("a", ended=Done("length", 1, 3))]


def test_echo_scores_by_length() -> None:
    emissions = run(echo(), [Score("ctx", ("a", "bcd"))], [[]])
    done = emissions[0].ended
    assert isinstance(done, Done)
    assert [score.log_likelihood for score in end_of(done, Scored).scores] == [-1.0, -3.0]


def test_replayed_text_held_back_before_the_takeover_is_not_lost() -> None:
    """Ids are logged before their text is certain: the next worker says the text that the first one
    held back."""
    emissions: list[Emission] = []
    engine = Engine(echo(), emissions.extend)
    prompt = tuple(map(ord, "aE"))
    engine.submit(
        SequenceWork(
            "a", Encoded(prompt, max_tokens=3), Sampling(3, 0, stop=("EN",)), replayed_ids=(prompt,)
        )
    )
    while engine.has_work:
        engine.step()
    assert "".join(item.text for item in emissions) == "Ea"


@pytest.mark.parametrize("text", ["", "\ufffd"])
def test_flush_twice_is_once(text: str) -> None:
    stream = TextStream(lambda ids: utf8(list(ids)))
    for byte in text.encode():
        stream.push(byte)
    stream.flush()
    assert stream.flush() == ""
