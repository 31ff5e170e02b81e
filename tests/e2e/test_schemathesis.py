"""schemathesis calls every operation of a running fleet, by our OpenAPI document.

No answer is a 5xx, or has a status, a media type or a body that the document does not show.
"""

import re
import subprocess
import sys
from pathlib import Path

import httpx

from tests.fixtures.e2e.serving import serving

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
# A deadline of a millisecond is rightly answered with a 504. Paths of jobs get an existing id. Those
# of webhooks get one that does not exist: a test of an endpoint takes a second, which adds up. Bodies
# that other operations have too are covered there; docs/clients.md has the command for the whole walk.
CONFIG = """
[parameters]
"header.x-deadline-ms" = "60000"

[[operations]]
include-path-regex = "^/(v1/jobs|api/inference)/"
parameters = {{ "path.id" = "{job}" }}

[[operations]]
include-path-regex = "^/v1/webhook_endpoints/"
parameters = {{ "path.id" = "we_none" }}

[[operations]]
include-path-regex = "^/(v1/jobs|api/inference/stream|generate_stream|)$"
include-method = "POST"
phases = {{ coverage.enabled = false }}
"""


def test_nothing_is_answered_that_the_document_does_not_tell(tmp_path: Path) -> None:
    with serving("--model-path", "echo", "--max-new-tokens", "64", "--log-level", "error") as fleet:
        body = {"task": "chat", "messages": [{"role": "user", "content": "a"}]}
        job = httpx.post(f"{fleet.url}/v1/jobs", json=body, timeout=60)
        (tmp_path / "schemathesis.toml").write_text(CONFIG.format(job=job.json()["id"]))

        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml"]
        command += ["run", f"{fleet.url}/openapi.json", "--checks", ",".join(CHECKS)]
        command += ["--max-examples", "5", "--seed", "1", "--no-color"]
        command += ["--generation-database", "none"]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=360, check=False
        )

    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    counts = re.search(r"Selected: (\d+)/(\d+)\s+Tested: (\d+)", done.stdout)
    assert counts is not None, done.stdout
    num_selected = int(counts[1])
    assert num_selected >= 18
    assert int(counts[2]) == num_selected, done.stdout
    assert int(counts[3]) == num_selected, done.stdout
