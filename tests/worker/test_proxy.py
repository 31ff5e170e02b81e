"""An engine elsewhere is asked: what it is sent, how its answers are read, and its faults."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from shared.errors import InvalidRequest
from shared.messages import (
    UNKNOWN_ID,
    Chat,
    Done,
    Failed,
    Generate,
    Sampling,
    Score,
    Task,
    Turn,
)
from tests.fixtures.polling import until
from tests.fixtures.worker.upstreams import (
    NUM_PROMPT,
    WORDS,
    Exchange,
    Respond,
    StandIn,
    proxy,
    stand_in,
)
from worker.engine import remote_engine
from worker.engine.remote_engine import RemoteEngine
from worker.engine.remote_runner import RemoteRunner
from worker.engine.request import Emission
from worker.engine.take import Take
from worker.models.errors import ModelAway, ModelFormatError

TEXT = "".join(WORDS)
ASKED = Generate("Count", Sampling(max_tokens=9, seed=3, temperature=0.0))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_engine, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(remote_engine, "PROBE_AWAY_S", 0.02)
    monkeypatch.setattr(remote_engine, "PROBE_IDLE_S", 0.05)


class Desk:
    """An engine, and what it has emitted."""

    def __init__(self, runner: RemoteRunner) -> None:
        loop = asyncio.get_running_loop()
        self.emissions: list[Emission] = []
        self.num_steps = 0
        self.engine = RemoteEngine(
            runner, self.emissions.extend, lambda: loop.call_soon_threadsafe(self._step)
        )

    def _step(self) -> None:
        if self.engine.due_in_s == 0:
            self.num_steps += 1
            self.engine.step()

    def ask(self, task: Task = ASKED, key: str = "key", **take: Any) -> None:
        self.engine.submit(self.engine.prepare(Take(key, task, **take)))

    @property
    def text(self) -> str:
        return "".join(emission.text for emission in self.emissions)

    async def end(self) -> Done | Failed:
        await until(lambda: any(emission.ended for emission in self.emissions), "an end")
        ended = self.emissions[-1].ended
        assert ended is not None and not isinstance(ended, str)
        return ended


@asynccontextmanager
async def desk_of(upstream: StandIn, **options: Any) -> AsyncIterator[Desk]:
    desk = Desk(await proxy(upstream.url, **options))
    yield desk
    desk.engine.close()


@pytest.fixture
async def upstream() -> AsyncIterator[StandIn]:
    async with stand_in() as server:
        yield server


@pytest.fixture
async def desk(upstream: StandIn) -> AsyncIterator[Desk]:
    async with desk_of(upstream) as desk:
        yield desk


async def test_news_of_several_requests_is_emitted_together(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request alone waits for no other."""
    monkeypatch.setattr(remote_engine, "GATHER_S", 0.2)
    for key in ("a", "b", "c"):
        desk.ask(key=key)
    await until(lambda: not desk.engine.has_work, "three ends")
    assert len(desk.emissions) == 3 * (len(WORDS) + 1)
    assert desk.num_steps < len(desk.emissions) / 2

    monkeypatch.setattr(remote_engine, "GATHER_S", 60.0)
    desk.emissions.clear()
    desk.ask()
    await desk.end()


async def test_an_answer_comes_in_pieces_with_the_usage_of_the_engine(
    upstream: StandIn, desk: Desk
) -> None:
    desk.ask()
    assert await desk.end() == Done("stop", NUM_PROMPT, len(WORDS))
    assert [emission.text for emission in desk.emissions if emission.text] == list(WORDS)
    assert not desk.engine.has_work
    assert desk.engine.stats.num_tokens == len(WORDS)
    [exchange] = upstream.asked
    assert exchange.body == {
        "model": "m",
        "prompt": "Count",
        "max_tokens": 9,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_only_what_differs_from_a_default_is_sent(upstream: StandIn, desk: Desk) -> None:
    sampling = Sampling(9, 3, temperature=0.5, top_k=4, stop=("x",), logit_bias=((5, 1.0),))
    desk.ask(Generate(Chat((Turn("user", "Count"),)), sampling))
    await desk.end()
    [exchange] = upstream.asked
    assert exchange.path == "/v1/chat/completions"
    assert exchange.body["messages"] == [{"role": "user", "content": "Count"}]
    assert exchange.body["stop"] == ["x"]
    assert exchange.body["logit_bias"] == {"5": 1.0}
    assert exchange.body["top_k"] == 4
    assert not exchange.body.keys() & {"n", "min_p", "logprobs", "repetition_penalty"}
    assert desk.text == TEXT


@pytest.mark.parametrize(
    ("owner", "sampling", "sent"),
    [
        ("llamacpp", {"repetition_penalty": 2.0}, {"repeat_penalty": 2.0, "top_k": 0, "min_p": 0}),
        ("vllm", {"stop_ids": (5,)}, {"stop_token_ids": [5], "return_token_ids": True}),
        ("llamacpp", {"seed": 2**32 + 4}, {"seed": 5}),
    ],
)
async def test_each_kind_of_server_is_asked_in_its_words(
    owner: str, sampling: dict[str, Any], sent: dict[str, Any]
) -> None:
    async with (
        stand_in(models=[{"id": "m", "owned_by": owner}]) as upstream,
        desk_of(upstream) as desk,
    ):
        desk.ask(Generate("Count", Sampling(**{"max_tokens": 9, "seed": 3} | sampling)))
        await desk.end()
        assert sent.items() <= upstream.asked[0].body.items()


async def test_what_a_known_server_would_pass_over_is_refused() -> None:
    async with stand_in(models=[{"id": "m", "owned_by": "library"}]) as upstream:
        runner = await proxy(upstream.url)
        with pytest.raises(InvalidRequest, match="top_k: the engine elsewhere does not have it"):
            runner.read(Generate("Count", Sampling(9, 3, top_k=4)))


async def test_log_probabilities_of_tokens_that_are_known_by_their_texts(
    upstream: StandIn, desk: Desk
) -> None:
    async def respond(exchange: Exchange) -> None:
        await exchange.begin_stream()
        logprobs = {
            "tokens": ["a", "token_id:4"],
            "token_logprobs": [-0.5, -2.0],
            "top_logprobs": [{"a": -0.5, "b": -1.0}, {"a": -0.1, "token_id:4": -2.0}],
        }
        await exchange.word("a", reason="length", logprobs=logprobs)
        await exchange.end(2)

    upstream.script.append(respond)
    desk.ask(Generate("Count", Sampling(9, 3, logprobs=1)))
    await desk.end()
    assert upstream.asked[0].body["logprobs"] == 1
    first, second = desk.emissions[0].logprobs
    assert desk.emissions[0].ids == (UNKNOWN_ID, 4)
    assert (first.logprob, first.token, first.top) == (-0.5, "a", ((UNKNOWN_ID, "a", -0.5),))
    assert (second.logprob, second.token, second.top) == (-2.0, "", ((UNKNOWN_ID, "a", -0.1),))


async def test_ids_that_the_engine_tells(upstream: StandIn, desk: Desk) -> None:
    async def respond(exchange: Exchange) -> None:
        await exchange.begin_stream()
        logprobs = {
            "tokens": ["a", "b"],
            "token_logprobs": [-0.5, -2.0],
            "top_logprobs": [{"a": -0.5}, {"c": -0.1, "b": -2.0}],
        }
        await exchange.word("ab", reason="stop", token_ids=[11, 12], logprobs=logprobs)
        await exchange.end(2)

    upstream.script.append(respond)
    desk.ask(Generate("Count", Sampling(9, 3, logprobs=1)))
    await desk.end()
    assert desk.emissions[0].ids == (11, 12)
    tops = [entry.top for entry in desk.emissions[0].logprobs]
    assert tops == [((11, "a", -0.5),), ((UNKNOWN_ID, "c", -0.1),)]


def refuse(status: int, message: str = "not so", **headers: str) -> Respond:
    async def respond(exchange: Exchange) -> None:
        await exchange.answer(status, {"error": {"message": message}}, **headers)

    return respond


async def reset(exchange: Exchange) -> None:
    exchange.reset()


async def reset_later(exchange: Exchange) -> None:
    await exchange.begin_stream()
    await exchange.word(WORDS[0])
    exchange.reset()


async def stop_short(exchange: Exchange) -> None:
    await exchange.begin_stream()
    await exchange.word(WORDS[0])
    exchange.writer.close()


async def nonsense(exchange: Exchange) -> None:
    await exchange.begin_stream()
    await exchange.frame('{"choices": 5}')
    exchange.writer.close()


async def fail_in_stream(exchange: Exchange) -> None:
    await exchange.begin_stream()
    await exchange.word(WORDS[0])
    await exchange.frame({"error": {"message": "the cable burns", "type": "server_error"}})
    exchange.writer.close()


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (refuse(400, "a bad number"), "invalid_request", "a bad number"),
        (
            refuse(400, "This model's maximum context length is 9 tokens."),
            "context_length_exceeded",
            "9 tokens",
        ),
        (refuse(404, "no such model"), "invalid_request", "no such model"),
        (refuse(422, "no such field"), "invalid_request", "no such field"),
        (refuse(401, "sk-secret"), "worker_failed", "refuses the fleet's key"),
        (refuse(403, "sk-secret"), "worker_failed", "refuses the fleet's key"),
        (refuse(500, "a fire"), "upstream_failed", "a fire"),
        (reset_later, "upstream_failed", "broke off in the middle"),
        (stop_short, "upstream_failed", "broke off in the middle"),
        (fail_in_stream, "upstream_failed", "the cable burns"),
        (nonsense, "upstream_failed", "in a form that is not known"),
    ],
)
async def test_faults_that_end_a_request(
    upstream: StandIn, desk: Desk, fault: Respond, code: str, message: str
) -> None:
    """The text that came before stays delivered, and no request is repeated."""
    upstream.script.append(fault)
    desk.ask()
    end = await desk.end()
    assert isinstance(end, Failed)
    assert end.code == code
    assert message in end.message
    assert "sk-secret" not in end.message
    assert desk.text in ("", WORDS[0])
    assert len(upstream.asked) == 1
    assert desk.engine.stats.num_failures == 1


@pytest.mark.parametrize(
    "fault", [refuse(429), refuse(503, Retry_After="0.01"), refuse(502), reset]
)
async def test_faults_before_the_first_token_are_hidden(
    upstream: StandIn, desk: Desk, fault: Respond
) -> None:
    upstream.script.extend((fault, fault))
    desk.ask()
    assert await desk.end() == Done("stop", NUM_PROMPT, len(WORDS))
    assert len(upstream.asked) == 3
    assert desk.text == TEXT


async def test_a_request_is_repeated_only_so_often(upstream: StandIn) -> None:
    async with desk_of(upstream, retries=2) as desk:
        upstream.script.extend([refuse(429, "no room")] * 3)
        desk.ask()
        end = await desk.end()
    assert isinstance(end, Failed)
    assert (end.code, len(upstream.asked)) == ("upstream_failed", 3)
    assert "asked 3 times: status 429: no room" in end.message


async def hang(exchange: Exchange) -> None:
    await exchange.begin_stream()
    await exchange.word(WORDS[0])
    await exchange.left()
    exchange.headers["left"] = "yes"


async def test_a_dropped_request_is_closed_at_once(upstream: StandIn, desk: Desk) -> None:
    upstream.script.append(hang)
    desk.ask()
    await until(lambda: desk.text == WORDS[0], "a word")
    desk.engine.abort("key")
    await until(lambda: "left" in upstream.asked[0].headers, "the client leaves")
    await until(lambda: not desk.engine.has_work, "it is forgotten")
    assert not any(emission.ended for emission in desk.emissions)


async def test_a_deadline_ends_an_answer_with_what_there_is(upstream: StandIn) -> None:
    upstream.script.append(hang)
    now_s = 1000.0
    async with desk_of(upstream) as desk:
        desk.engine._now = lambda: now_s
        desk.ask(deadline_s=now_s + 5.0)
        assert await desk.end() == Done("deadline", 0, 1)
        await until(lambda: "left" in upstream.asked[0].headers, "the client leaves")
    assert desk.text == WORDS[0]


async def test_a_deadline_before_the_first_token(upstream: StandIn, desk: Desk) -> None:
    async def wait(exchange: Exchange) -> None:
        await exchange.left()

    upstream.script.append(wait)
    desk.engine._now = lambda: 0.0
    desk.ask(deadline_s=0.1)
    end = await desk.end()
    assert isinstance(end, Failed)
    assert end.code == "deadline_exceeded"


@pytest.mark.parametrize("logged", ["", "o", "one two", TEXT])
async def test_an_answer_that_is_repeated_goes_on_behind_what_is_logged(
    upstream: StandIn, desk: Desk, logged: str
) -> None:
    desk.ask(replayed_texts=(logged,), replayed_ids=((),))
    assert await desk.end() == Done("stop", NUM_PROMPT, len(WORDS))
    assert desk.text == TEXT.removeprefix(logged)


@pytest.mark.parametrize("logged", ["ten", "one tw0", TEXT + " five"])
async def test_another_answer_never_goes_on(upstream: StandIn, desk: Desk, logged: str) -> None:
    desk.ask(replayed_texts=(logged,), replayed_ids=((),))
    end = await desk.end()
    assert isinstance(end, Failed)
    assert end.code == "upstream_failed"
    assert "cannot be continued" in end.message
    assert desk.text == ""


async def test_an_engine_that_is_away_gets_no_new_work_until_it_is_back() -> None:
    async with stand_in() as upstream:
        port = upstream.port
        desk = Desk(await proxy(upstream.url))
    await until(lambda: not desk.engine.accepts, "the engine is seen to be away")
    async with stand_in(port):
        await until(lambda: desk.engine.accepts, "the engine is seen to be back")
        desk.ask()
        await desk.end()
        desk.engine.close()
    assert desk.text == TEXT


async def test_an_engine_that_hangs_is_seen_to_be_away(
    upstream: StandIn, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_engine, "PROBE_TIMEOUT_S", 0.05)
    upstream.hangs = True
    await until(lambda: not desk.engine.accepts, "the engine is seen to hang")
    upstream.hangs = False
    await until(lambda: desk.engine.accepts, "the engine is seen to be back")


async def test_the_engine_says_what_it_is() -> None:
    async with stand_in(
        models=[{"id": "big", "owned_by": "vllm", "max_model_len": 99}]
    ) as upstream:
        spec = (await proxy(upstream.url + "/v1")).spec
    assert (spec.context_window, spec.tasks, spec.max_batch) == (99, ("generate",), 32)
    assert spec.found == "proxy: big of an engine elsewhere (vllm)"


async def test_llama_cpp_tells_its_window_in_its_own_way() -> None:
    listed = {"id": "m", "owned_by": "llamacpp", "meta": {"n_ctx": 88, "n_vocab": 7}}
    async with stand_in(models=[listed]) as upstream:
        assert (await proxy(upstream.url)).spec.context_window == 88


async def test_which_of_several_models() -> None:
    async with stand_in(models=[{"id": "a"}, {"id": "b"}]) as upstream:
        with pytest.raises(ModelFormatError, match=r"which of its models .* It has a, b"):
            await proxy(upstream.url)
        with pytest.raises(ModelFormatError, match="it has no model 'c'; it has a, b"):
            await proxy(upstream.url, upstream_model="c")
        assert "b of" in (await proxy(upstream.url, upstream_model="b")).spec.found


async def test_no_engine_answers() -> None:
    async with stand_in() as upstream:
        url = upstream.url
    with pytest.raises(ModelAway, match=f"No engine answers at {url}"):
        await proxy(url)


async def test_the_key_is_sent_and_never_shown(
    upstream: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("sk-file\n")
    monkeypatch.setenv("ENGINE_KEY", "sk-env")
    for options, key in (
        ({"api_key_file": str(tmp_path / "key")}, "sk-file"),
        ({"api_key_env": "ENGINE_KEY"}, "sk-env"),
    ):
        async with desk_of(upstream, **options) as desk:
            desk.ask()
            await desk.end()
            assert upstream.asked[-1].headers["authorization"] == f"Bearer {key}"
            assert key not in repr(vars(desk.engine.runner))
    with pytest.raises(ModelFormatError, match="ENGINE_OTHER is not set"):
        await proxy(upstream.url, api_key_env="ENGINE_OTHER")
    with pytest.raises(ModelFormatError, match="a key does not belong into the URL"):
        await proxy("http://user:sk-url@localhost/v1")


async def test_a_chat_alone_or_completions_alone() -> None:
    chat = Generate(Chat((Turn("user", "Count"),)), ASKED.sampling)
    async with stand_in(missing=("/v1/completions",)) as upstream:
        runner = await proxy(upstream.url)
        runner.read(chat)
        with pytest.raises(InvalidRequest, match="chats alone"):
            runner.read(ASKED)
    async with stand_in(missing=("/v1/chat/completions",)) as upstream:
        runner = await proxy(upstream.url)
        runner.read(ASKED)
        with pytest.raises(InvalidRequest, match="no chats"):
            runner.read(chat)
        with pytest.raises(InvalidRequest, match="no such task"):
            runner.read(Score("a", ("b",)))


def tgi_frame(text: str, token: int, *, special: bool = False, **end: Any) -> dict[str, Any]:
    shown = {"id": token, "text": text, "logprob": -0.5, "special": special}
    return {"index": token, "token": shown, "generated_text": None, "details": None} | end


async def tgi_words(exchange: Exchange) -> None:
    await exchange.begin_stream()
    await exchange.frame(tgi_frame("one", 1))
    await exchange.frame(tgi_frame(" two", 2))
    await exchange.frame(tgi_frame(" stop", 3))
    details = {"finish_reason": "stop_sequence", "generated_tokens": 4, "input_length": 5}
    await exchange.frame(tgi_frame("ped", 4, generated_text="one two stopped", details=details))
    exchange.writer.close()


async def test_tgi_is_asked_in_its_own_dialect() -> None:
    """Its stop string is no part of the text here, and each choice is a request of its own."""
    info = {"/info": {"model_id": "big", "max_total_tokens": 77}}
    async with stand_in(pages=info) as upstream:
        upstream.script.extend((tgi_words, tgi_words))
        async with desk_of(upstream) as desk:
            assert desk.engine.runner.spec.context_window == 77
            sampling = Sampling(9, 3, temperature=0.5, stop=("stopped",), n=2, logprobs=0)
            desk.ask(Generate("Count", sampling))
            end = await desk.end()
    assert isinstance(end, Done)
    assert (end.num_prompt_tokens, end.num_completion_tokens) == (5, 8)
    assert end.generated.finish_reasons == ("stop", "stop")
    first, second = upstream.asked
    assert first.path == "/generate_stream"
    assert first.body["inputs"] == "Count"
    parameters = first.body["parameters"]
    assert parameters["do_sample"] is True
    assert "top_p" not in parameters
    assert parameters["seed"] != second.body["parameters"]["seed"]
    texts = ["", ""]
    ids: list[list[int]] = [[], []]
    for emission in desk.emissions:
        texts[emission.choice] += emission.text
        ids[emission.choice] += emission.ids
    assert texts == ["one two ", "one two "]
    assert ids == [[1, 2, 3, 4]] * 2
