"""A first client: completions of prompts, the log-likelihood of a continuation, and a stream.

python -m scripts.examples.sample_client --url http://localhost:8000 "Solve for x: 2x + 3 = 9"
"""

import argparse
import json
from collections.abc import Iterator

import httpx


def generate(client: httpx.Client, prompts: list[str], max_tokens: int = 128) -> list[str]:
    """The likeliest completion of each prompt."""
    answer = client.post(
        "/generate", json={"prompts": prompts, "max_tokens": max_tokens, "temperature": 0}
    )
    answer.raise_for_status()
    completions: list[str] = answer.json()["completions"]
    return completions


def log_likelihood(client: httpx.Client, prompt: str, continuation: str) -> float:
    """In nats."""
    answer = client.post(
        "/loglikelihood", json={"prompts": [prompt], "continuations": [continuation]}
    )
    answer.raise_for_status()
    return float(answer.json()["ll"][0])


def stream(client: httpx.Client, prompt: str, max_tokens: int = 128) -> Iterator[str]:
    """The pieces of a completion as they come."""
    body = {"prompts": [prompt], "max_tokens": max_tokens, "temperature": 0}
    with client.stream("POST", "/generate_stream", json=body) as answer:
        if answer.is_error:
            answer.read()
            answer.raise_for_status()
        for line in answer.iter_lines():
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
    asked = parser.parse_args()
    with httpx.Client(base_url=asked.url, timeout=60) as client:
        [completion] = generate(client, [asked.prompt])
        print(completion)
        print(f"log-likelihood: {log_likelihood(client, asked.prompt, completion):.2f}")
        for piece in stream(client, asked.prompt):
            print(piece, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
