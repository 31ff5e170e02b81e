"""`GET /`: a page that a browser shows by itself, the same as JSON; names are escaped, links lead
somewhere."""

import json
import shlex
from html.parser import HTMLParser

import httpx
import pytest
from redis.asyncio import Redis

from api.http.home import wants_html
from shared.access import Grant, Keyring
from shared.queue.broker import Broker
from tests.fixtures.api.echo_worker import EchoWorker, announce
from tests.fixtures.api.fronts import in_memory

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"}
CURL = {"Accept": "*/*"}


class Page(HTMLParser):
    """What a page's elements are, where they lead, and what a reader sees of them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.code = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)
        given = dict(attrs)
        self.links += [given["href"] or ""] if tag == "a" else []
        self.sources += [
            name for name in given if name in ("src", "srcset") or name.startswith("on")
        ]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "elements are nested as they should be"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open[-2:] == ["pre", "code"]:
            self.code += data


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (BROWSER["Accept"], True),
        ("text/html", True),
        ("TEXT/HTML;Q=0.5", True),
        ("text/*", True),
        ("text/html;q=0.9, application/json;q=0.8", True),
        ("*/*", False),
        ("", False),
        ("application/json", False),
        ("text/html;q=0.8, application/json", False),
        ("text/html, application/json", False),
        ("text/html;q=0", False),
        ("text/html;q=0, */*", False),
        ("text/html;q=x", False),
        ("image/png", False),
    ],
)
def test_who_wants_a_page(accept: str, expected: bool) -> None:
    assert wants_html(accept) is expected


async def test_a_browser_gets_a_page_and_curl_the_same_as_json(
    redis: Redis, worker: EchoWorker
) -> None:
    async with in_memory(redis) as client:
        shown = await client.get("/", headers=BROWSER)
        told = await client.get("/", headers=CURL)
        assert shown.headers["content-type"] == "text/html; charset=utf-8"
        assert told.headers["content-type"] == "application/json"
        page = Page(shown.text)
        body = told.json()
        assert (page.open, page.sources) == ([], [])
        assert not {"script", "link", "img", "iframe", "form"} & set(page.tags), (
            "nothing is fetched from elsewhere"
        )
        assert "default-src 'none'" in shown.headers["content-security-policy"]
        assert (body["status"], body["needs_key"], [model["id"] for model in body["models"]]) == (
            "ready",
            False,
            ["echo"],
        )
        assert page.links == list(body["links"].values())
        assert page.code == body["example"]
        assert "echo" in page.text and "Status: ready" in page.text
        for link in page.links:
            assert (await client.get(link)).status_code == 200
        for answer in (shown, told):
            assert (answer.headers["vary"], answer.headers["cache-control"]) == (
                "Accept",
                "no-store",
            )


async def run(client: httpx.AsyncClient, command: str) -> httpx.Response:
    """What the example's curl would send."""
    words = shlex.split(command)
    assert words[0] == "curl"
    headers = {}
    body = None
    for flag, value in zip(words[2::2], words[3::2], strict=True):
        if flag == "-H":
            name, _, text = value.partition(": ")
            headers[name] = text
        else:
            assert flag == "-d"
            body = value
    return await client.request(
        "GET" if body is None else "POST", words[1], headers=headers, content=body
    )


@pytest.mark.parametrize("root", [None, "/hrm"])
async def test_the_example_does_what_it_says(
    redis: Redis, worker: EchoWorker, root: str | None
) -> None:
    async with in_memory(redis, root_path=root) as client:
        body = (await client.get("/")).json()
        answer = await run(client, body["example"])
        assert answer.status_code == 200, answer.text
        assert str(answer.url) == f"http://front{root or ''}/v1/completions"
        assert all(link.startswith(f"{root or ''}/") for link in body["links"].values())


@pytest.mark.parametrize(
    ("tasks", "path"),
    [
        (("solve",), "/v1/puzzles/solve"),
        (("embed",), "/v1/embeddings"),
        (("classify",), "/v1/models"),
    ],
)
async def test_the_example_asks_for_what_there_is(
    redis: Redis, tasks: tuple[str, ...], path: str
) -> None:
    await announce(redis, "only", tasks=tasks)
    async with in_memory(redis) as client:
        example = (await client.get("/")).json()["example"]
        assert shlex.split(example)[1] == f"http://front{path}"
        answer = await run(
            client, example + (" -H 'Prefer: respond-async'" if " -d " in example else "")
        )
        assert answer.status_code in (200, 202), answer.text


async def test_names_are_escaped(redis: Redis) -> None:
    """Of models, which who starts a worker may choose, and of the host, which comes with the
    request."""
    await announce(redis, "<b>&'\"x", "two' ; rm")
    async with in_memory(redis) as client:
        answer = await client.get("/", headers=BROWSER | {"Host": "a'<i>\"b"})
        page = Page(answer.text)
        body = (await client.get("/", headers={"Host": "a'<i>\"b"})).json()
    assert not {"b", "i"} & set(page.tags)
    assert "<b>&'\"x" in page.text
    words = shlex.split(body["example"])
    assert json.loads(words[-1])["model"] in ("<b>&'\"x", "two' ; rm")
    assert len(words) == 6, "nothing of a name is another word of the command"


async def test_a_closed_fleet_names_no_models_and_still_shows_the_way(
    redis: Redis, worker: EchoWorker
) -> None:
    await Keyring(Broker(redis)).create(Grant("ann", "ann"))
    for settings in ({"api_keys": "k"}, {}):
        async with in_memory(redis, **settings) as client:
            shown = await client.get("/", headers=BROWSER)
            body = (await client.get("/")).json()
            assert (body["needs_key"], body["models"]) == (True, None)
            assert '"Authorization: Bearer $KEY"' in body["example"]
            assert "echo" not in shown.text + json.dumps(body)
            assert (await client.post("/", json={"inputs": "a"})).status_code == 401, (
                "POST / is a caller's"
            )


async def test_without_a_worker_and_without_redis_there_is_a_page_too(redis: Redis) -> None:
    async with in_memory(redis) as client:
        body = (await client.get("/")).json()
        assert (body["status"], body["models"]) == ("not ready: no worker is ready", [])
        assert (await run(client, body["example"])).status_code == 200
    async with in_memory(Broker(Redis(port=1))) as client:
        answer = await client.get("/", headers=BROWSER)
        assert answer.status_code == 200 and "Redis is not reachable" in answer.text


async def test_posting_there_is_still_text_generation_inferences(
    redis: Redis, worker: EchoWorker
) -> None:
    async with in_memory(redis) as client:
        answer = await client.post("/", json={"inputs": "a b"}, headers=BROWSER)
        wrong = await client.post("/", json={"inputs": 3})
    assert answer.json()[0]["generated_text"] == "a b"
    assert "error_type" in wrong.json()
