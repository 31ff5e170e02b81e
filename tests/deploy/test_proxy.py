"""A front behind a real HAProxy that ends TLS and serves it below a prefix, stripped or passed
on."""

import asyncio
import json
import re
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.fixtures.api.frames import frames
from tests.fixtures.api.fronts import process
from tests.fixtures.api.staying import staying_worker
from tests.fixtures.deploy.balancer import HAPROXY
from tests.fixtures.polling import DEADLINE_S, until
from tests.fixtures.redis_server import free_port

pytestmark = [
    pytest.mark.skipif(
        not Path(HAPROXY).is_file(), reason="needs haproxy (apt-get install haproxy)"
    ),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl"),
]

CONFIG = """
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout http-keep-alive 60s
    option forwardfor

frontend outside
    bind 127.0.0.1:{port} ssl crt {directory}/both.pem
    http-request set-header X-Forwarded-Proto https
    http-request return status 404 unless {{ path /hrm }} || {{ path_beg /hrm/ }}
    {strip}
    default_backend fronts

backend fronts
    server front 127.0.0.1:{front}
"""
STRIP = "http-request replace-path /hrm/?(.*) /\\1"
BROWSER = {"Accept": "text/html"}


@asynccontextmanager
async def outside(directory: Path, front: int, *, strips: bool) -> AsyncIterator[httpx.AsyncClient]:
    """Run the proxy and yield a client, which trusts its certificate alone and follows no
    redirects."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    names = ("-subj", "/CN=proxy", "-addext", "subjectAltName=IP:127.0.0.1")
    command = [
        "openssl",
        "req",
        "-x509",
        *key,
        *names,
        "-keyout",
        "proxy.key",
        "-out",
        "proxy.pem",
    ]
    await asyncio.to_thread(subprocess.run, command, cwd=directory, check=True, capture_output=True)
    both = (directory / "proxy.pem").read_text() + (directory / "proxy.key").read_text()
    (directory / "both.pem").write_text(both)
    port = free_port()
    config = CONFIG.format(
        port=port, directory=directory, front=front, strip=STRIP if strips else ""
    )
    (directory / "proxy.cfg").write_text(config)
    proxy = await asyncio.create_subprocess_exec(
        HAPROXY, "-q", "-db", "-f", str(directory / "proxy.cfg")
    )
    trusted = ssl.create_default_context(cafile=str(directory / "proxy.pem"))
    base_url = f"https://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(base_url=base_url, verify=trusted, timeout=20) as client:

            async def is_up() -> bool:
                assert proxy.returncode is None, f"haproxy ended with {proxy.returncode}"
                try:
                    return (await client.get("/hrm/healthz")).status_code == 200
                except httpx.TransportError:
                    return False

            await until(is_up, "the proxy listens")
            yield client
    finally:
        if proxy.returncode is None:
            proxy.kill()
        await proxy.wait()


@pytest.mark.parametrize("strips", [True, False])
async def test_a_front_below_a_prefix_behind_tls(
    redis_url: str, tmp_path: Path, strips: bool
) -> None:
    async with (
        staying_worker(redis_url),
        process(redis_url, root_path="/hrm") as (_, direct),
        outside(tmp_path, direct.base_url.port or 0, strips=strips) as client,
    ):
        assert (await client.get("/v1/models")).status_code == 404, "the proxy shows nothing else"
        for path in ("/hrm/v1/models", "/hrm/v1/models/"):
            assert (await client.get(path)).json()["data"][0]["id"] == "echo"
        assert (await client.get("/hrm/v1/models/echo/")).json()["id"] == "echo"
        for path in ("/hrm/v1/completions", "/hrm/v1/completions/"):
            answer = await client.post(path, json={"prompt": "a b"})
            assert answer.status_code == 200
            assert answer.json()["choices"][0]["text"] == "a b"

        accepted = await client.post(
            "/hrm/generate/", json={"prompts": ["a b"]}, headers={"Prefer": "respond-async"}
        )
        location = accepted.headers["Location"]
        assert location == f"/hrm/v1/jobs/{accepted.headers['X-Job-Id']}"
        followed = await client.get(f"{location}/events")
        assert followed.status_code == 200
        assert frames(followed)[-1].data == "[DONE]"
        assert (await client.get(location)).json()["state"] == "done"

        head = await client.head("/hrm/v1/models/")
        assert head.status_code == 200
        assert head.content == b""

        document = (await client.get("/hrm/openapi.json")).json()
        assert document["servers"] == [{"url": "/hrm"}]
        docs = (await client.get("/hrm/docs")).text
        assert "/hrm/openapi.json" in docs

        for path in ("/hrm", "/hrm/"):
            page = (await client.get(path, headers=BROWSER)).text
            assert f"curl {client.base_url}/hrm/v1/completions " in page
            for link in re.findall(r'href="([^"]+)"', page):
                assert link.startswith("/hrm/")
                assert (await client.get(link)).status_code == 200

        # A probe asks the front itself, without the prefix.
        assert (await direct.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("trusted", "scheme", "address"),
    [
        (("127.0.0.1",), "https", "192.0.2.7"),
        (("127.0.0.0/8",), "https", "192.0.2.7"),
        (("10.0.0.0/8",), "http", "127.0.0.1"),
        ((), "http", "127.0.0.1"),
    ],
)
async def test_only_proxies_that_are_named_are_believed(
    redis_url: str, tmp_path: Path, trusted: tuple[str, ...], scheme: str, address: str
) -> None:
    """Only a trusted proxy's headers give the caller's address in the security log and the scheme
    of the page's example.

    HAProxy adds its caller's address behind the header that the caller sent."""
    settings = {"forwarded_allow_ips": trusted, "root_path": "/hrm", "api_keys": ("ann:key-a",)}
    sent = {"X-Forwarded-For": "192.0.2.7"}
    async with (
        process(redis_url, **settings) as (front, direct),
        outside(tmp_path, direct.base_url.port or 0, strips=False) as client,
    ):
        example = (await client.get("/hrm/")).json()["example"]
        assert re.findall(r"https?://", example) == [f"{scheme}://"]

        assert (await client.get("/hrm/v1/models", headers=sent)).status_code == 401
        assert front.stderr is not None
        while True:
            line = json.loads(await asyncio.wait_for(front.stderr.readline(), DEADLINE_S))
            if line["logger"] == "aios.security":
                break
        assert line["client"] == address
