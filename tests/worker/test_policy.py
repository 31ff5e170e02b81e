"""Properties of the engine without torch: text streams, requests, the engine on the echo."""

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


def utf8(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def stream_of(*stop: str) -> TextStream:
    """Return a stream of byte tokens that ends at the first of these stop strings."""
    return TextStream(utf8, stop)


def stream_of_texts(tokens: Sequence[str], *stop: str) -> TextStream:
    """Return a stream where the token with number n stands for the n-th of these texts."""

    def decode(ids: Sequence[int]) -> str:
        return "".join(tokens[token_id] for token_id in ids)

    return TextStream(decode, stop)


def push_all(stream: TextStream, text: str) -> list[str]:
    """Push the text's bytes, one token each, and return the texts that came out."""
    texts = []
    for byte in text.encode():
        texts.append(stream.push(byte))
    return texts


def cut_at_first_stop(text: str, stop: Sequence[str]) -> str:
    """Return the text before the stop string that is complete first.

    Of two that are complete at the same character the longer one counts.
    """
    for end in range(len(text) + 1):
        starts = []
        for stop_string in stop:
            if text[:end].endswith(stop_string):
                starts.append(end - len(stop_string))
        if starts:
            return text[: min(starts)]
    return text


@settings(max_examples=300, deadline=None)
@given(
    st.text("aжñ😀 <|", max_size=30),
    st.lists(st.text("aж😀 <|", min_size=1, max_size=4), max_size=3),
)
def test_streamed_text_is_the_whole_text_cut_at_the_first_stop(text: str, stop: list[str]) -> None:
    """Streamed text ends at the first stop string and never has half a character (B65, T10).

    Each byte is a token, so that characters and stop strings cross token boundaries.
    """
    stream = stream_of(*stop)
    streamed = ""
    for byte in text.encode():
        piece = stream.push(byte)
        assert "\ufffd" not in piece
        streamed += piece
        if stream.is_stopped:
            break
    streamed += stream.flush()

    assert streamed == cut_at_first_stop(text, stop)
    assert stream.is_stopped == any(stop_string in text for stop_string in stop)


def test_the_cut_does_not_depend_on_token_boundaries() -> None:
    """`<` is complete before `a<<` is, whether they come in one token or in three."""
    for tokens in (["a<<"], ["a", "<", "<"], ["a<", "<"]):
        stream = stream_of_texts(tokens, "<", "a<<")
        streamed = ""
        for token_id in range(len(tokens)):
            streamed += stream.push(token_id)
        assert streamed == "a"


def test_text_that_may_become_a_stop_string_is_held_back() -> None:
    """The beginning of a stop string comes out once it cannot become one."""
    assert push_all(stream_of("END"), "xENy") == ["x", "", "", "ENy"]


def test_without_stop_strings_nothing_is_held_back() -> None:
    """Without stop strings each token's text comes out at once."""
    assert push_all(stream_of(), "ab") == ["a", "b"]


def test_after_a_stop_string_nothing_comes() -> None:
    """Tokens behind a stop string give no text, not even at the end."""
    stream = stream_of("END")
    assert "".join(push_all(stream, "a END b END")) == "a "
    assert stream.flush() == ""


def test_a_stop_string_that_came_too_early_is_text_and_stays_that() -> None:
    """A stop string that is complete before it may stop is text.

    The first "ab" comes too early, inside the text held back for "xabyz"; the second one stops.
    """
    stream = stream_of("ab", "xabyz")
    texts = []
    for position, byte in enumerate(b"xabq ab"):
        texts.append(stream.push(byte, may_stop=position > 2))
    assert texts == ["", "", "", "xabq", " ", "", ""]
    assert stream.is_stopped

    alone = stream_of("ab")
    assert alone.push(ord("a"), may_stop=False) == ""
    assert alone.push(ord("b"), may_stop=False) == "ab"


def test_the_beginning_of_a_stop_string_is_held_back_inside_a_token() -> None:
    """Only the part of a token that may become a stop string is held back."""
    stream = stream_of_texts(["a xE", "ND"], "END")
    assert stream.push(0) == "a x"
    assert stream.push(1) == ""
    assert stream.is_stopped


@pytest.mark.parametrize(("before", "token"), [("a", "b"), ("", "é"), ("é", "b")])
def test_what_a_token_would_add_is_told_beforehand(before: str, token: str) -> None:
    """`peek` returns the whole characters that a token would add, and changes nothing."""
    *first, last = token.encode()
    stream = stream_of()
    assert "".join(push_all(stream, before)) == before

    for byte in first:
        assert stream.peek(byte) == ""
        assert stream.push(byte) == ""

    assert stream.peek(last) == token
    assert stream.peek(last) == token
    assert stream.push(last) == token


def test_an_unfinished_character_comes_out_at_the_end() -> None:
    """Half a character is held back; at the end it is shown as U+FFFD."""
    stream = stream_of()
    first_byte = "é".encode()[0]
    assert stream.push(first_byte) == ""
    assert stream.flush() == "\ufffd"


def echo() -> Echo:
    return Echo(RunnerOptions(path="echo", max_batch=3, context_window=64))


def ended(emissions: list[Emission]) -> dict[str, Done | Failed]:
    """Return the end of each job by its key; no job may end twice."""
    ends: dict[str, Done | Failed] = {}
    for emission in emissions:
        if emission.ended is not None:
            assert emission.key not in ends, "a job ended twice"
            ends[emission.key] = emission.ended
    return ends


def text_of(emissions: list[Emission], key: str) -> str:
    """Return the whole text of one job."""
    text = ""
    for emission in emissions:
        if emission.key == key:
            text += emission.text
    return text


def step_until_done(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


def test_finish_reasons_and_counts() -> None:
    """A job ends at its cap, an end token or a stop string, with exact counts (A45, A46, T10)."""
    tasks = [
        Generate("abc", Sampling(max_tokens=7, seed=0)),
        Generate("say eos", Sampling(max_tokens=60, seed=0)),
        Generate("abcd", Sampling(max_tokens=60, seed=0, stop=("cd", "zz"))),
    ]

    emissions = run(echo(), tasks, [[], [], []])

    assert text_of(emissions, "0") == "abcabca"
    assert text_of(emissions, "1") == "say eos"
    assert text_of(emissions, "2") == "ab"
    assert ended(emissions) == {
        "0": Done("length", 3, 7),
        "1": Done("stop", 7, 8),
        "2": Done("stop", 4, 4),
    }


def test_a_failing_sequence_fails_alone() -> None:
    """The batch mates of a sequence that breaks the model go on (P7)."""

    class Fragile(Echo):
        def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
            for part in slices:
                if part.sequence.encoded.prompt_ids[0] == ord("!"):
                    raise RuntimeError("bad luck")
            return super().step(slices)

    tasks = [Generate(text, Sampling(max_tokens=4, seed=0)) for text in ("abc", "!", "xyz")]
    runner = Fragile(RunnerOptions(path="echo", max_batch=3))

    ends = ended(run(runner, tasks, [[], [], []]))

    failed = ends["1"]
    assert isinstance(failed, Failed)
    assert "bad luck" in failed.message
    assert ends["0"] == Done("length", 3, 4)
    assert ends["2"] == Done("length", 3, 4)


def test_ids_that_are_no_characters_do_not_break_the_echo() -> None:
    """Half a surrogate pair cannot be written as UTF-8, so it is shown as U+FFFD."""
    task = Generate((0xD800, 97), Sampling(max_tokens=2, seed=0))
    assert text_of(run(echo(), [task], [[]]), "0") == "\ufffda"


def test_abort_frees_the_place_at_once() -> None:
    """An aborted job, running or waiting, emits nothing more (P6); the others go on."""
    emissions: list[Emission] = []
    engine = Engine(echo(), emissions.extend)
    sampling = Sampling(max_tokens=20, seed=0)
    for number in range(5):
        engine.submit(SequenceWork(str(number), Encoded((97, 98), max_tokens=20), sampling))

    # Three rows run, so that job 0 is running and job 4 is waiting.
    engine.step()
    engine.abort("0")
    engine.abort("4")
    num_before = len(emissions)
    step_until_done(engine)

    for emission in emissions[num_before:]:
        assert emission.key not in ("0", "4")
    assert set(ended(emissions)) == {"1", "2", "3"}


def test_a_replayed_answer_that_was_complete_only_gets_its_end() -> None:
    """A takeover after the last token and before the end emits the end and no token twice."""
    emissions: list[Emission] = []
    engine = Engine(echo(), emissions.extend)
    work = SequenceWork(
        "a",
        Encoded((97,), max_tokens=3),
        Sampling(max_tokens=3, seed=0),
        replayed_ids=((97, 97, 97),),
    )

    engine.submit(work)
    step_until_done(engine)

    assert emissions == [Emission("a", ended=Done("length", 1, 3))]


def test_echo_scores_by_length() -> None:
    """The echo's log-likelihood of a continuation is minus its length."""
    emissions = run(echo(), [Score("ctx", ("a", "bcd"))], [[]])
    done = emissions[0].ended
    assert isinstance(done, Done)

    first, second = end_of(done, Scored).scores

    assert first.log_likelihood == -1.0
    assert second.log_likelihood == -3.0


def test_replayed_text_held_back_before_the_takeover_is_not_lost() -> None:
    """The next worker emits the text that the first one held back.

    Ids are logged before it is certain that their text is no stop string.
    """
    emissions: list[Emission] = []
    engine = Engine(echo(), emissions.extend)
    prompt = (ord("a"), ord("E"))
    work = SequenceWork(
        "a",
        Encoded(prompt, max_tokens=3),
        Sampling(max_tokens=3, seed=0, stop=("EN",)),
        replayed_ids=(prompt,),
    )

    engine.submit(work)
    step_until_done(engine)

    assert text_of(emissions, "a") == "Ea"


@pytest.mark.parametrize("text", ["", "\ufffd"])
def test_flush_twice_is_once(text: str) -> None:
    """A second flush returns no text."""
    stream = stream_of()
    push_all(stream, text)
    stream.flush()
    assert stream.flush() == ""
