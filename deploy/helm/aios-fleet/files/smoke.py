"""Check for `helm test` that the front at FRONT_URL is ready and that a model completes a prompt.

It uses the standard library alone. With keys, it sends the first of AIOS_API_KEYS. It exits with 0,
or with the answer that it got instead.
"""

import json
import os
import sys
import urllib.error
import urllib.request


def ask(path: str, body: object = None) -> dict[str, object]:
    """The JSON that the front answers: of a POST where there is a body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        os.environ["FRONT_URL"] + path, data, {"Content-Type": "application/json"}
    )
    if keys := os.environ.get("AIOS_API_KEYS"):
        request.add_header(
            "Authorization", "Bearer " + keys.split(",")[0].strip().rpartition(":")[2]
        )
    with urllib.request.urlopen(request, timeout=60) as answer:
        said: dict[str, object] = json.load(answer)
        print(path, answer.status, said, flush=True)
        return said


try:
    ask("/readyz")
    said = ask("/generate", {"prompts": ["Solve for x: 3x + 5 = 20"], "max_tokens": 4})
except urllib.error.HTTPError as error:
    sys.exit(f"{error.url} {error.code} {error.read().decode()}")
if not said.get("completions"):
    sys.exit("no completion")
