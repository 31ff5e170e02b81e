"""Time a fleet's answers one by one and many at a time: the gain of batches that form by themselves.

python -m scripts.bench.batching --model ~/.cache/aios/models/minilm --task feature-extraction

It serves the model by `aios serve hrm`, and asks `/api/inference`. Texts are sentences of different
lengths, pictures are photographs' size and random, and sounds are those of `--file`. With
`--beside-sentence-transformers` it embeds as many texts by that library, in lists, and by
`/v1/embeddings`, in lists as long.
"""

import argparse
import asyncio
import base64
import io
import json
import random
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter as now
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from scripts.bench.measure import Comparison, header
from scripts.bench.serve import fleet

_WORDS = (
    "train",
    "cat",
    "house",
    "river",
    "went",
    "saw",
    "green",
    "old",
    "quickly",
    "near",
    "city",
)
_IMAGE_SIZE = (320, 240)
_TEXT_TASKS = ("feature-extraction", "text-classification")
_LIST = 32
"""Texts of one call of a list."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print a header and a line for each comparison."""
    args = _arguments(argv)
    flags = ["--model-path", args.model, "--workers", "1", "--threads", str(args.threads)]
    flags += ["--max-queue-depth", "4096"]
    inputs = _inputs(args)
    print(header(model=Path(args.model).name, task=args.task, threads=args.threads))
    with fleet([*flags, *args.flag]) as url:
        bodies = [{"task": args.task, "inputs": one} for one in inputs]
        speed = Comparison()
        for number in range(args.rounds + 1):
            together = seconds_to_answer(f"{url}/api/inference", bodies, args.concurrent)
            alone = seconds_to_answer(f"{url}/api/inference", bodies, 1)
            # The first round does not count: it touches memory for the first time.
            if number:
                speed.add(ours=together, theirs=alone)
        sides = (f"{args.concurrent} at a time", "one by one")
        print(speed.rates(args.task, len(bodies), "requests/s", sides=sides), flush=True)
        if args.beside_sentence_transformers:
            print(_beside_sentence_transformers(url, args, inputs))
    return 0


def _beside_sentence_transformers(url: str, args: argparse.Namespace, texts: Sequence[str]) -> str:
    """Return a line about texts a second, in lists of the same length on both sides."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(args.threads)
    library = SentenceTransformer(args.model, device="cpu")
    lists = [list(texts[start : start + _LIST]) for start in range(0, len(texts), _LIST)]
    speed = Comparison()
    for number in range(args.rounds + 1):
        bodies = [{"input": one} for one in lists]
        ours = seconds_to_answer(f"{url}/v1/embeddings", bodies, concurrent=2)
        begun_s = now()
        library.encode(list(texts), batch_size=_LIST)
        theirs = now() - begun_s
        if number:
            speed.add(ours=ours, theirs=theirs)
    return speed.rates("embeddings", len(texts), "texts/s", sides=("fleet", "library"))


def seconds_to_answer(url: str, bodies: Sequence[dict[str, Any]], concurrent: int) -> float:
    """Return the seconds in which all bodies are answered, `concurrent` at a time."""
    return asyncio.run(_answer_all(url, bodies, concurrent))


async def _answer_all(url: str, bodies: Sequence[dict[str, Any]], concurrent: int) -> float:
    requests = [_request(url, body) for body in reversed(bodies)]

    async def ask_on() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        while requests:
            writer.write(requests.pop())
            await _read_answer(reader)
        writer.close()

    address = urlsplit(url)
    begun_s = now()
    await asyncio.gather(*[ask_on() for _ in range(concurrent)])
    return now() - begun_s


def _request(url: str, body: dict[str, Any]) -> bytes:
    """Return a request as bytes: an HTTP library would take as much CPU time as the fleet."""
    address = urlsplit(url)
    data = json.dumps(body).encode()
    head = (
        f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def _read_answer(reader: asyncio.StreamReader) -> None:
    """Read an answer. Raise RuntimeError for one that is not right."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    [length] = re.findall(r"content-length: (\d+)", head)
    data = await reader.readexactly(int(length))
    if " 200 " not in head.partition("\r\n")[0]:
        raise RuntimeError(data.decode())


def _inputs(args: argparse.Namespace) -> list[str]:
    """Return the inputs of all requests, each different where the task allows."""
    makers: dict[str, Callable[[int], str]] = {
        "image-classification": _image,
        "automatic-speech-recognition": lambda number: _encoded(args.file.read_bytes()),
    }
    if args.task in _TEXT_TASKS:
        return draw_sentences(args.count, seed=0)
    return [makers[args.task](number) for number in range(args.count)]


def draw_sentences(count: int, seed: int) -> list[str]:
    """Return sentences of 5 to 25 words."""
    generator = random.Random(seed)
    sentences = []
    for _ in range(count):
        sentences.append(" ".join(generator.choices(_WORDS, k=generator.randint(5, 25))))
    return sentences


def _image(number: int) -> str:
    generator = np.random.default_rng(number)
    # Coarse patches: noise would be a JPEG far larger than a photograph's.
    coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(coarse).resize(_IMAGE_SIZE, Image.Resampling.BICUBIC).save(data, "JPEG")
    return _encoded(data.getvalue())


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="directory of a model")
    parser.add_argument(
        "--task",
        required=True,
        choices=(*_TEXT_TASKS, "image-classification", "automatic-speech-recognition"),
    )
    parser.add_argument("--file", type=Path, help="sound for automatic-speech-recognition")
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--concurrent", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flag", action="append", default=[], help="flag of aios serve hrm")
    parser.add_argument("--beside-sentence-transformers", action="store_true")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
