"""The bench of embeddings asks each side for the same texts, and prints a table of all."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from scripts.bench import embeddings

SHORT = ["--count", "6", "--concurrent", "2", "--rounds", "3"]


@contextmanager
def embedding_server(
    asked: list[list[str]], *, turn: float = 0.0, seconds: float = 0.0, status: int = 200
) -> Iterator[str]:
    """Embed texts by their lengths, and yield the URL. `asked` gets the texts of each request.

    Vectors of two numbers are turned by `turn`, and an answer takes at least `seconds`.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
            asked.append(texts)
            time.sleep(seconds)
            data = [{"embedding": [len(text), turn * len(text)]} for text in texts]
            answer = json.dumps({"data": data}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/embeddings"
        finally:
            server.shutdown()


def test_sides_get_the_same_texts_and_a_row_each(capsys: pytest.CaptureFixture[str]) -> None:
    ours: list[list[str]] = []
    theirs: list[list[str]] = []
    with (
        embedding_server(ours) as our_url,
        embedding_server(theirs, turn=1.0, seconds=1.0) as their_url,
    ):
        assert embeddings.main([f"ours={our_url}", f"theirs={their_url}", *SHORT]) == 0

    # In the warm-up and in each round a list and its texts alone, and a list for the cosines.
    for asked in (ours, theirs):
        lists = [texts for texts in asked if len(texts) == 6]
        alone = [texts[0] for texts in asked if len(texts) == 1]
        assert len(lists) == 2 + 3
        assert sorted(alone) == sorted(text for texts in [lists[0], *lists[2:]] for text in texts)
    assert len(set(map(tuple, lists))) == 1 + 3, "each round has texts of its own"
    assert sorted(ours) == sorted(theirs)

    out = capsys.readouterr().out
    rows = dict(re.findall(r"^\| (ours|theirs) \| (.*) \|$", out, re.MULTILINE))
    rate, same, _, _, cosine = rows["ours"].split(" | ")
    assert float(rate.split()[0]) > 0
    assert same == "1.00 (1.00 to 1.00)"
    assert cosine == "1.0000"
    rate, ratio, list_rate, list_ratio, cosine = rows["theirs"].split(" | ")
    # Six texts by two clients take three answers of a second, a list takes one.
    assert float(rate.split()[0]) <= 6 / 3.0
    assert float(list_rate.split()[0]) <= 6 / 1.0
    assert float(ratio.split()[0]) > 1
    assert float(list_ratio.split()[0]) > 1
    assert cosine == "0.7071"


def test_an_answer_that_is_not_right_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    with embedding_server([], status=500) as url, pytest.raises(RuntimeError, match="embedding"):
        embeddings.main([f"ours={url}", *SHORT])


@pytest.mark.parametrize("side", ["http://127.0.0.1/v1/embeddings", "ours=127.0.0.1"])
def test_a_side_has_a_name_and_a_url(side: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        embeddings.main([side])
    assert "is not NAME=http://..." in capsys.readouterr().err
