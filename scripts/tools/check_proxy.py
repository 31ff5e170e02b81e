"""Compare the answers of an engine elsewhere, asked by itself and through a fleet that proxies it.

    python -m scripts.tools.check_proxy http://localhost:8001/v1

A fleet is started for it, unless `--fleet` names one whose `--fleet-model` is that engine. Texts and
usage must be equal for greedy answers, log-probabilities near, and a stream that is closed must be
closed at the engine, too. The exit status is 1 where one is not.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

_PROMPTS = ("The sea is", "Once upon a time", "1 + 2 = 3, and 3 + 4 =", "Grüße aus")
_CONTINUATIONS = (" blue", " there was")
_MAX_TOKENS = 24
_NEAR = 0.02
"""The most that the log-probability of a token may differ: the engine's batches differ, too."""
_TIMEOUT_S = 120.0
_READY = re.compile(r"ready at (http://\S+)")
_RUNNING = re.compile(r"^vllm:num_requests_running\S* (\S+)$", re.MULTILINE)
_WITH_DEFAULTS = ("vllm", "llamacpp")
"""Servers that cut the choice of tokens by themselves, unless they are told not to."""
_LOOK_S = 0.1
_MOST_LOOKS = 100


@dataclass(frozen=True)
class Side:
    """A server in OpenAI's dialect, and its name for the model."""

    http: httpx.AsyncClient
    model: str
    owner: str = ""

    async def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return an answer. Raise httpx.HTTPError."""
        answer = await self.http.post(path, json={"model": self.model, **body})
        answer.raise_for_status()
        return dict(answer.json())

    async def text_of_stream(self, body: dict[str, Any]) -> str:
        text = ""
        async for piece in self.pieces(body):
            text += piece
        return text

    async def pieces(self, body: dict[str, Any]) -> AsyncIterator[str]:
        """Yield the texts of a streamed completion."""
        asked = {"model": self.model, "stream": True, **body}
        async with self.http.stream("POST", "/v1/completions", json=asked) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    yield choice["text"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check: None where the engine does not offer what is checked."""

    name: str
    is_right: bool | None
    note: str = ""

    def __str__(self) -> str:
        word = {True: "ok", False: "WRONG", None: "-"}[self.is_right]
        return f"{word:<6} {self.name:<22} {self.note}".rstrip()


def _greedy(prompt: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "temperature": 0, "max_tokens": _MAX_TOKENS, **more}


async def _same(
    name: str, direct: Side, proxied: Side, bodies: Sequence[dict[str, Any]]
) -> Finding:
    """Return whether texts, reasons and usage of completions are equal."""
    wrong: list[str] = []
    for body in bodies:
        one = _facts(await direct.ask("/v1/completions", body))
        two = _facts(await proxied.ask("/v1/completions", body))
        if one != two:
            wrong.append(f"{one} is {two}")
    note = f"{len(bodies) - len(wrong)} of {len(bodies)} equal"
    return Finding(name, not wrong, "; ".join([note, *wrong]))


def _facts(answer: dict[str, Any]) -> tuple[list[Any], list[int]]:
    choices = [(choice["text"], choice["finish_reason"]) for choice in answer["choices"]]
    usage = answer["usage"]
    return choices, [usage["prompt_tokens"], usage["completion_tokens"]]


async def _logprobs(direct: Side, proxied: Side) -> Finding:
    body = _greedy(_PROMPTS[0], logprobs=2)
    one = _tokens_of(await direct.ask("/v1/completions", body))
    two = _tokens_of(await proxied.ask("/v1/completions", body))
    if not one:
        return Finding("logprobs", None, "the engine tells none")
    if [token.name for token in one] != [token.name for token in two]:
        return Finding("logprobs", False, f"{one} is {two}")
    apart = 0.0
    for left, right in zip(one, two, strict=True):
        apart = max(apart, abs(left.logprob - right.logprob))
    have_all = [token.num_top for token in one] == [token.num_top for token in two]
    return Finding("logprobs", apart <= _NEAR and have_all, f"at most {apart:.2g} apart")


@dataclass(frozen=True)
class _Token:
    name: str
    logprob: float
    num_top: int


def _tokens_of(answer: dict[str, Any]) -> list[_Token]:
    """Return the tokens of a completion. llama.cpp tells them in the form of a chat."""
    logprobs = answer["choices"][0]["logprobs"] or {}
    tokens: list[_Token] = []
    for entry in logprobs.get("content") or ():
        tokens.append(_Token(entry["token"], entry["logprob"], len(entry["top_logprobs"])))
    for index, name in enumerate(logprobs.get("tokens") or ()):
        value = logprobs["token_logprobs"][index]
        tokens.append(_Token(name, value, len(logprobs["top_logprobs"][index])))
    return tokens


async def _streams(direct: Side, proxied: Side) -> Finding:
    one = await direct.text_of_stream(_greedy(_PROMPTS[1]))
    two = await proxied.text_of_stream(_greedy(_PROMPTS[1]))
    return Finding("a stream's text", one == two, "" if one == two else f"{one!r} is {two!r}")


async def _chats(direct: Side, proxied: Side) -> Finding:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": _PROMPTS[0]}]}
    body |= {"temperature": 0, "max_tokens": _MAX_TOKENS}
    texts: list[str] = []
    for side in (direct, proxied):
        try:
            answer = await side.ask("/v1/chat/completions", body)
        except httpx.HTTPStatusError as error:
            texts.append(f"status {error.response.status_code}")
            continue
        texts.append(answer["choices"][0]["message"]["content"])
    one, two = texts
    is_right: bool | None = one == two
    if one.startswith("status"):
        is_right = None if two.startswith("status") else False
    return Finding("a chat", is_right, "" if is_right else f"{one!r} is {two!r}")


async def _scores(direct: Side, proxied: Side) -> Finding:
    """Compare scores with the log-probabilities that the engine gives a whole text."""
    body: dict[str, Any] = {
        "model": proxied.model,
        "prompts": list(_PROMPTS[:2]),
        "continuations": list(_CONTINUATIONS),
    }
    answer = await proxied.http.post("/loglikelihood", json=body)
    if answer.status_code != 200:
        return Finding("scores", None, f"not offered: {answer.text}")
    scored = answer.json()
    apart = 0.0
    for index, (prompt, continuation) in enumerate(zip(_PROMPTS, _CONTINUATIONS, strict=False)):
        echo = {"prompt": prompt + continuation, "echo": True, "logprobs": 1}
        whole = await direct.ask("/v1/completions", {**echo, "max_tokens": 1, "temperature": 0})
        num_prompt = whole["usage"]["prompt_tokens"]
        values = whole["choices"][0]["logprobs"]["token_logprobs"][:num_prompt]
        last = values[num_prompt - scored["num_tokens"][index] :]
        if None in last:
            return Finding("scores", None, "the engine predicts no tokens of a prompt")
        apart = max(apart, abs(sum(last) - scored["ll"][index]))
    return Finding("scores", apart <= 2 * _NEAR, f"at most {apart:.2g} apart")


async def _cancels(direct: Side, proxied: Side) -> Finding:
    """Leave a stream, and see by the engine's own numbers that it has stopped."""
    if await _num_running(direct) is None:
        return Finding("a closed stream", None, "the engine does not tell how many it runs")
    body = _greedy(_PROMPTS[0], ignore_eos=True) | {"max_tokens": 200}
    async for _ in proxied.pieces(body):
        break
    for _ in range(_MOST_LOOKS):
        if not await _num_running(direct):
            return Finding("a closed stream", True)
        await asyncio.sleep(_LOOK_S)
    return Finding("a closed stream", False, f"still runs after {_MOST_LOOKS * _LOOK_S:g} s")


async def _num_running(side: Side) -> int | None:
    """Return how many requests vLLM or llama.cpp computes, None for any other server."""
    found = _RUNNING.search((await side.http.get("/metrics")).text)
    if found is not None:
        return int(float(found[1]))
    slots = await side.http.get("/slots")
    if slots.status_code != 200:
        return None
    return sum(bool(slot["is_processing"]) for slot in slots.json())


async def check(direct: Side, proxied: Side) -> list[Finding]:
    """Return the outcomes of all checks."""
    plain = [_greedy(prompt) for prompt in _PROMPTS]
    stopped = [_greedy(prompt, stop=["e", "n"]) for prompt in _PROMPTS[:2]]
    sampled = [{**_greedy(_PROMPTS[0]), "temperature": 1, "seed": 7, "top_p": 0.9}]
    if direct.owner in _WITH_DEFAULTS:
        sampled[0] |= {"top_k": 0, "min_p": 0}
    return [
        await _same("greedy texts", direct, proxied, plain),
        await _same("stop strings", direct, proxied, stopped),
        await _same("seeded texts", direct, proxied, sampled),
        await _logprobs(direct, proxied),
        await _streams(direct, proxied),
        await _chats(direct, proxied),
        await _scores(direct, proxied),
        await _cancels(direct, proxied),
    ]


@contextmanager
def _fleet(url: str) -> Iterator[str]:
    """Run a fleet that proxies an engine, and yield its URL."""
    command = [sys.executable, "-m", "scripts.cli.aios", "serve", "hrm", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--workers", "1", "--model", f"proxied={url}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line)
            found = _READY.search(line)
            if found is not None:
                # So that the fleet never waits for a reader.
                threading.Thread(target=process.stdout.read, daemon=True).start()
                yield found[1]
                return
        raise RuntimeError("the fleet did not start:\n" + "".join(lines))
    finally:
        process.terminate()
        process.wait()


@asynccontextmanager
async def _side(url: str, model: str | None) -> AsyncIterator[Side]:
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        yield Side(client, model or listed[0]["id"], listed[0].get("owned_by", ""))


async def _compare(url: str, model: str | None, fleet: str, fleet_model: str) -> list[Finding]:
    root = url.rstrip("/").removesuffix("/v1")
    async with _side(root, model) as direct, _side(fleet, fleet_model) as proxied:
        return await check(direct, proxied)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.tools.check_proxy", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("url", help="the engine's URL, such as http://localhost:8001/v1")
    parser.add_argument("--model", help="the engine's name of the model (default: its first)")
    parser.add_argument("--fleet", help="the URL of a fleet that proxies it (default: one is run)")
    parser.add_argument("--fleet-model", default="proxied", help="the model's id there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.fleet is not None:
        findings = asyncio.run(_compare(args.url, args.model, args.fleet, args.fleet_model))
    else:
        with _fleet(args.url) as fleet:
            findings = asyncio.run(_compare(args.url, args.model, fleet, args.fleet_model))
    for finding in findings:
        print(finding)
    return int(any(finding.is_right is False for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
