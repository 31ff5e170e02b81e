"""`GET /`: a page for browsers and the same as JSON; names are escaped and links lead somewhere."""

import base64
import hashlib
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
    """The elements of a page, its links and scripts, and the text that a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.code = ""
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "input"):
            self.open.append(tag)
        if tag == "a":
            self.links.append(dict(attrs)["href"] or "")
        for name, _ in attrs:
            if name in ("src", "srcset") or name.startswith("on"):
                self.sources.append(name)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "elements are nested as they should be"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
            return
        self.text += data
        if self.open[-2:] == ["pre", "code"]:
            self.code += data


async def run(client: httpx.AsyncClient, command: str) -> httpx.Response:
    """Send the request that the example's curl would send."""
    words = shlex.split(command)
    assert words[0] == "curl"
    url = words[1]
    flags = words[2::2]
    values = words[3::2]

    method = "GET"
    headers = {}
    body = None
    for flag, value in zip(flags, values, strict=True):
        if flag == "-H":
            name, _, text = value.partition(": ")
            headers[name] = text
        else:
            assert flag == "-d"
            method = "POST"
            body = value
    return await client.request(method, url, headers=headers, content=body)


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
        html = await client.get("/", headers=BROWSER)
        as_json = await client.get("/", headers=CURL)
        for answer in (html, as_json):
            assert answer.headers["vary"] == "Accept"
            assert answer.headers["cache-control"] == "no-store"

        assert as_json.headers["content-type"] == "application/json"
        body = as_json.json()
        assert body["status"] == "ready"
        assert body["needs_key"] is False
        assert [model["id"] for model in body["models"]] == ["echo"]

        assert html.headers["content-type"] == "text/html; charset=utf-8"
        policy = html.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        page = Page(html.text)
        [script] = page.scripts
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in policy
        assert page.open == []
        assert page.sources == []
        fetching = {"link", "img", "iframe"}
        assert not fetching & set(page.tags), "nothing is fetched from elsewhere"

        assert page.links == list(body["links"].values())
        assert page.code == body["example"]
        assert "echo" in page.text
        assert "Status: ready" in page.text
        for link in page.links:
            assert (await client.get(link)).status_code == 200


@pytest.mark.parametrize("root", [None, "/hrm"])
async def test_the_example_does_what_it_says(
    redis: Redis, worker: EchoWorker, root: str | None
) -> None:
    prefix = root or ""
    async with in_memory(redis, root_path=root) as client:
        body = (await client.get("/")).json()
        answer = await run(client, body["example"])

    assert answer.status_code == 200, answer.text
    assert str(answer.url) == f"http://front{prefix}/v1/completions"
    for link in body["links"].values():
        assert link.startswith(f"{prefix}/")


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

        # No worker takes the work of this test, so a POST does not wait for it.
        if " -d " in example:
            example += " -H 'Prefer: respond-async'"
        answer = await run(client, example)
        assert answer.status_code in (200, 202), answer.text


async def test_names_are_escaped(redis: Redis) -> None:
    """Models are named by whoever starts a worker, and the host by whoever sends the request."""
    await announce(redis, "<b>&'\"x", "two' ; rm")
    host = {"Host": "a'<i>\"b"}

    async with in_memory(redis) as client:
        html = await client.get("/", headers=BROWSER | host)
        body = (await client.get("/", headers=host)).json()

    page = Page(html.text)
    assert not {"b", "i"} & set(page.tags)
    assert "<b>&'\"x" in page.text
    words = shlex.split(body["example"])
    assert json.loads(words[-1])["model"] in ("<b>&'\"x", "two' ; rm")
    assert len(words) == 6, "nothing of a name is another word of the command"


async def test_without_a_model_that_writes_there_is_no_form(redis: Redis) -> None:
    await announce(redis, "only", tasks=("solve",))
    async with in_memory(redis) as client:
        html = await client.get("/", headers=BROWSER)
    assert not {"form", "script"} & set(Page(html.text).tags)


async def test_a_closed_fleet_names_no_models_and_still_shows_the_way(
    redis: Redis, worker: EchoWorker
) -> None:
    await Keyring(Broker(redis)).create(Grant("ann", "ann"))
    for settings in ({"api_keys": "k"}, {}):
        async with in_memory(redis, **settings) as client:
            html = await client.get("/", headers=BROWSER)
            body = (await client.get("/")).json()
            assert body["needs_key"] is True
            assert body["models"] is None
            assert '"Authorization: Bearer $KEY"' in body["example"]
            assert "echo" not in html.text
            assert 'type="password"' in html.text
            assert "echo" not in json.dumps(body)

            post = await client.post("/", json={"inputs": "a"})
            assert post.status_code == 401, "POST / is a caller's"


async def test_without_a_worker_and_without_redis_there_is_a_page_too(redis: Redis) -> None:
    async with in_memory(redis) as client:
        body = (await client.get("/")).json()
        assert body["status"] == "not ready: no worker is ready"
        assert body["models"] == []
        assert (await run(client, body["example"])).status_code == 200

    async with in_memory(Broker(Redis(port=1))) as client:
        answer = await client.get("/", headers=BROWSER)
        assert answer.status_code == 200
        assert "Redis is not reachable" in answer.text


async def test_posting_there_is_still_text_generation_inferences(
    redis: Redis, worker: EchoWorker
) -> None:
    async with in_memory(redis) as client:
        answer = await client.post("/", json={"inputs": "a b"}, headers=BROWSER)
        wrong = await client.post("/", json={"inputs": 3})

    assert answer.json()[0]["generated_text"] == "a b"
    assert "error_type" in wrong.json()
