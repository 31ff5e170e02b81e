"""The peer bench runs on a tiny net: this fleet and transformers, with a table of both."""

import asyncio
import json
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from scripts.bench.peers import __main__ as peers
from scripts.bench.peers.load import Figures, closed_loop
from scripts.bench.peers.process import server
from scripts.bench.peers.scoring import Question, draw_questions, score_all
from scripts.bench.peers.sides import Case, Load, Scoring, Turn, Unavailable

TINY = ["--size", "tiny", "--rounds", "1", "--waves", "1", "--tokens", "8"]
TINY += ["--prompt-tokens", "20", "30", "--dtypes", "float32", "--nets", "hrm-text"]


def cells_of(text: str, side: str) -> list[str]:
    """Return the cells of the side's row in the table."""
    [row] = re.findall(rf"^\| {re.escape(side)} \|.*$", text, re.MULTILINE)
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_a_table_of_this_fleet_and_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--sides", "ours-1,static", "--clients", "1,2", "--questions", "2"]
    peers.main([str(tmp_path), *TINY, *flags])
    text = capsys.readouterr().out

    ours = cells_of(text, next(name for name in re.findall(r"\| (this fleet.*?) \|", text)))
    static = cells_of(text, "transformers, static batch")
    for cells in (ours, static):
        start_s, memory_mib, rate = cells[1], cells[2], cells[3].split()[0]
        assert float(start_s) > 0
        assert float(memory_mib) > 50, "all its processes count"
        assert float(rate) > 0
    assert float(ours[4]) > 0, "the fleet streams, so it has a first token"
    assert static[4] == "-"
    assert float(ours[-2].split()[0]) > 0, "the fleet scores"
    assert static[-2] == "-"


class Fixed:
    """A side that answers at a fixed rate, or cannot be had."""

    settings = "none"

    def __init__(
        self, name: str, tokens_per_s: Sequence[float], lacks: str = "", scores_per_s: float = 8.0
    ) -> None:
        self.name = name
        self._scores_per_s = scores_per_s
        self._tokens_per_s = list(tokens_per_s)
        self._lacks = lacks

    def set_up(self) -> None:
        if self._lacks == "package":
            raise Unavailable("no package")

    def measure(
        self, case: Case, loads: Sequence[Load], log: Path, scoring: Scoring | None
    ) -> Turn:
        if self._lacks == case.dtype:
            raise Unavailable(f"no {case.dtype}")
        if self._lacks == "health":
            raise RuntimeError("it ended early")
        for load in loads:
            assert not [prompt for prompt in load.warm_up if prompt in load.prompts]
        figures = [Figures(self._tokens_per_s.pop(0), 5.0, 2.0, 3.0)]
        return Turn(1.0, 64.0, figures, self._scores_per_s)


def test_sides_that_cannot_be_had_are_left_out_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = {
        "ours": Fixed("ours", [30.0, 10.0, 50.0, 1.0, 1.0, 1.0], scores_per_s=20.0),
        "vllm": Fixed("vllm", [20.0, 20.0, 20.0], lacks="int8"),
        "static": Fixed("static", [], lacks="package"),
        "continuous": Fixed("continuous", [], lacks="health"),
    }
    monkeypatch.setattr(peers, "all_sides", lambda folder: sides)
    flags = [*TINY, "--rounds", "3", "--clients", "4", "--dtypes", "float32,int8"]
    peers.main([str(tmp_path), *flags, "--sides", "ours,vllm,static,continuous"])
    text = capsys.readouterr().out

    assert "static: left out: no package" in text
    assert "vllm, hrm-text int8: left out: no int8" in text
    assert "continuous, hrm-text float32: left out: it ended early" in text
    of_float32, of_int8 = text.split("hrm-text, int8:")
    assert cells_of(of_float32, "ours")[3] == "30.0 (10.0 to 50.0)"
    # The median of the ratios of each round: 1.5, 0.5 and 2.5.
    assert "ours / vllm, tokens/s: at 4 1.50, scores/s 2.50" in of_float32
    assert "ours / vllm" not in of_int8


def test_the_fleets_own_choice_is_compared_with_the_best_shape_of_each_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = {
        "ours": Fixed("ours", [30.0, 10.0, 50.0]),
        "ours-1": Fixed("ours-1", [40.0, 5.0, 10.0]),
        "ours-n": Fixed("ours-n", [10.0, 20.0, 50.0]),
    }
    monkeypatch.setattr(peers, "all_sides", lambda folder: sides)
    flags = [*TINY, "--rounds", "3", "--clients", "4", "--dtypes", "float32"]
    peers.main([str(tmp_path), *flags, "--sides", "ours,ours-1,ours-n"])

    # The median of 30 / 40, 10 / 20 and 50 / 50.
    expected = "ours / best shape by hand, tokens/s: at 4 0.75"
    assert expected in capsys.readouterr().out


CHUNKS = [b'{"choices": [{"text": "a"}]}', b'{"choices": [{"text": "b"}]}', b"[DONE]"]


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer any request with a stream of two tokens."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    for chunk in CHUNKS:
        writer.write(b"data: " + chunk + b"\n\n")
        await writer.drain()
    writer.close()


async def test_every_prompt_is_answered_by_a_closed_loop() -> None:
    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    asked = []

    def body(prompt: Sequence[int], num_tokens: int) -> dict[str, object]:
        asked.append(list(prompt))
        return {"prompt": prompt, "max_tokens": num_tokens}

    def load() -> Figures:
        url = f"http://127.0.0.1:{port}"
        return closed_loop(url, body, [[1], [2], [3]], num_clients=2, num_tokens=2)

    figures = await asyncio.to_thread(load)
    listening.close()
    assert sorted(asked) == [[1], [2], [3]]
    assert figures.tokens_per_s > 0
    assert figures.ttft_p50_ms is not None
    assert figures.gap_p50_ms is not None


async def test_every_question_is_scored() -> None:
    asked = []

    async def score(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests of one connection until it ends."""
        with suppress(asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                asked.append(json.loads(await reader.readexactly(length)))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    listening = await asyncio.start_server(score, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    questions = draw_questions(5, context=20, continuations=4, length=8)

    def request_of(question: Question) -> tuple[str, dict[str, Any]]:
        assert len(question.context) == 20
        assert [len(text) for text in question.continuations] == [8] * 4
        return "/score", {"context": question.context}

    scores_per_s = await asyncio.to_thread(score_all, url, request_of, questions, num_clients=2)
    listening.close()
    assert sorted(body["context"] for body in asked) == sorted(one.context for one in questions)
    assert len({one.context for one in questions}) == 5
    assert scores_per_s > 0


def test_a_server_that_ends_before_it_is_ready_is_an_error_with_its_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    url = "http://127.0.0.1:1"
    with (
        pytest.raises(RuntimeError, match="no such model"),
        server(command, {}, url=url, ready_path="/", log=tmp_path / "log"),
    ):
        raise AssertionError("it never was ready")
