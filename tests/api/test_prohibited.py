"""Terms that no request may contain, in any text, field and letter case."""

import json
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from api.submit.prohibited import Prohibited, read_terms
from shared.errors import ProhibitedContent
from shared.settings.settings import Settings, SettingsError
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.fronts import in_memory

TERMS = "# what we do not want\nForbidden\n\n  two words \n"


@pytest.fixture
def terms(tmp_path: Path) -> str:
    path = tmp_path / "terms.txt"
    path.write_text(TERMS)
    return str(path)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("/generate", {"prompts": ["fine", "this is forBIDden!"]}, "prompts[1]"),
    ("/generate", {"prompts": ["a"], "stop": "TWO  words"}, "stop"),
    ("/loglikelihood", {"prompts": ["a"], "continuations": ["forbidden"]}, "continuations[0]"),
    ("/loglikelihood_rolling", {"prompts": ["\uff46orbidden"]}, "prompts[0]"),
    ("/v1/completions", {"prompt": "two\nwords"}, "prompt"),
    ("/v1/completions", {"prompt": ["a", "FORBIDDEN"], "stream": True}, "prompt[1]"),
    ("/v1/puzzles/solve", {"grid": "1..", "identifier": "forbidden"}, "identifier"),
]


@pytest.mark.parametrize(("path", "body", "where"), BAD)
async def test_a_request_with_a_term_is_refused_by_its_field(
    redis: Redis, worker: EchoWorker, terms: str, path: str, body: dict[str, Any], where: str
) -> None:
    async with in_memory(redis, prohibited_terms=terms) as client:
        answer = await client.post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "content_filter")
    assert error["message"] == f"{where}: Prohibited content in request"
    assert error.get("field", error.get("param")) == where.partition("[")[0]
    assert worker.jobs == []


async def test_without_a_file_nothing_is_refused_and_with_one_what_is_clean_passes(
    redis: Redis, worker: EchoWorker, terms: str
) -> None:
    async with in_memory(redis) as client:
        without_file = await client.post("/generate", json={"prompts": ["forbidden"]})
    assert without_file.status_code == 200

    async with in_memory(redis, prohibited_terms=terms) as client:
        term = await client.post("/generate", json={"prompts": ["forbid den two\twordsmiths"]})
        no_term = await client.post("/generate", json={"prompts": ["forbid den two wor ds"]})
        token_ids = await client.post("/v1/completions", json={"prompt": [1, 2]})
    assert term.status_code == 400
    assert no_term.status_code == 200
    assert token_ids.status_code == 200


def test_text_is_found_however_deep_it_lies_and_however_it_is_written() -> None:
    prohibited = Prohibited(["STRASSE"])

    content = [{"type": "text", "text": "Straße"}]
    chat = {"messages": [{"content": "a"}, {"content": content}]}
    with pytest.raises(ProhibitedContent, match=r"^messages\[1\]\.content\[0\]\.text: "):
        prohibited.check(json.dumps(chat).encode())

    with pytest.raises(ProhibitedContent):
        prohibited.check(rb'{"prompt": "\u0053trasse"}')

    prohibited.check(b"[" * 900 + b"]" * 900)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"prompt": 5}'])
def test_what_has_no_text_is_its_routes_to_refuse(body: bytes) -> None:
    Prohibited(["a"]).check(body)


def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    folder = tmp_path
    for path in (missing, binary, folder):
        with pytest.raises(SettingsError, match="prohibited_terms"):
            read_terms(Settings(prohibited_terms=str(path)))
