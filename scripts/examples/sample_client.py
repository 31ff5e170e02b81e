"""A first client: complete a prompt, score a continuation, and stream a completion.

python -m scripts.examples.sample_client --url http://localhost:8000 "Solve for x: 2x + 3 = 9"
"""

import argparse
import json
from collections.abc import Iterator

import httpx


def generate(client: httpx.Client, prompts: list[str], max_tokens: int = 128) -> list[str]:
    """Return the likeliest completion of each prompt. Raises httpx.HTTPError."""
    body = {"prompts": prompts, "max_tokens": max_tokens, "temperature": 0}
    response = client.post("/generate", json=body)
    response.raise_for_status()
    completions: list[str] = response.json()["completions"]
    return completions


def log_likelihood(client: httpx.Client, prompt: str, continuation: str) -> float:
    """Return the log-likelihood of a continuation of a prompt, in nats. Raises httpx.HTTPError."""
    body = {"prompts": [prompt], "continuations": [continuation]}
    response = client.post("/loglikelihood", json=body)
    response.raise_for_status()
    return float(response.json()["ll"][0])


def stream(client: httpx.Client, prompt: str, max_tokens: int = 128) -> Iterator[str]:
    """Yield the pieces of a completion as they come.

    Raises httpx.HTTPError if the request fails, and RuntimeError if the stream ends with an error.
    """
    body = {"prompts": [prompt], "max_tokens": max_tokens, "temperature": 0}
    with client.stream("POST", "/generate_stream", json=body) as response:
        if response.is_error:
            # A streamed body is read only on request, and the error's text is in it.
            response.read()
            response.raise_for_status()
        for line in response.iter_lines():
            # Server-sent events: blank lines, comments and `data: [DONE]` are no events of ours.
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            yield event.get("text", "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("prompt")
    args = parser.parse_args()

    with httpx.Client(base_url=args.url, timeout=60) as client:
        [completion] = generate(client, [args.prompt])
        print(completion)
        print(f"log-likelihood: {log_likelihood(client, args.prompt, completion):.2f}")
        for piece in stream(client, args.prompt):
            print(piece, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
