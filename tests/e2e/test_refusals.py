"""A setting that cannot be used ends every role alike: status 2 and one sentence, whichever role
and setting it is.

The sentence names the setting, its value, where that came from and what to do. A role refuses what
it reads, so the cells are each role times each port and path that it reads, times what can be wrong
with it.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.settings.settings import Settings
from tests.fixtures.bare_settings import without_settings

READERS = {
    "port": ("serve", "api"),
    "metrics_port": ("serve", "api", "jobs"),
    "worker_port": ("serve", "worker"),
    "prohibited_terms": ("serve", "api"),
    "model_path": ("serve", "worker"),
    "tokenizer_path": ("serve", "worker"),
    "chat_template": ("serve", "worker"),
    "models": ("serve", "worker"),
    "config": ("serve", "api", "worker", "jobs"),
}
FILES = ("prohibited_terms", "chat_template", "config")
"""Where a directory will not do. A model and a tokenizer may be a directory or a file."""
FOREIGN = "x86_64-conda-linux-gnu"
"""What conda's compilers set HOST to."""


@dataclass
class Cell:
    """What is asked of one role, and the words that its refusal must hold."""

    role: str
    argv: list[str]
    words: list[str]
    env: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.role} {' '.join(self.argv)} {self.env}"


def flag(name: str) -> str:
    return "--model" if name == "models" else "--" + name.replace("_", "-")


def ports() -> list[str]:
    return [name for name in READERS if name.endswith("port")]


def paths() -> list[str]:
    return [name for name in READERS if not name.endswith("port")]


def port_cells(taken: int) -> Iterator[Cell]:
    """A port in use, a host that is nobody's and one of another machine, each for each port that a
    role opens."""
    for name in ports():
        for role in READERS[name]:
            others = [] if name == "port" else ["--port", "0"]
            in_use = [*others, "--host", "127.0.0.1", flag(name), str(taken)]
            yield Cell(
                role,
                in_use,
                [f"{name}: ", str(taken), "address already in use", f"(from {flag(name)})"],
            )
            variable = {f"AIOS_{name.upper()}": str(taken)}
            yield Cell(
                role,
                [*others, "--host", "127.0.0.1"],
                [f"{name}: ", f"(from AIOS_{name.upper()})"],
                variable,
            )
            for host, env in (
                (FOREIGN, {"HOST": FOREIGN}),
                ("192.0.2.7", {"AIOS_HOST": "192.0.2.7"}),
            ):
                words = ["host: ", repr(host), f"(from {next(iter(env))})", "--host"]
                yield Cell(role, [*others, flag(name), "0"], words, env)
    for host in ("a" * 300, "a..b", ":::"):
        yield Cell("api", ["--port", "0", "--host", host], ["host: ", host, "(from --host)"])


def path_cells(place: Path) -> Iterator[Cell]:
    """A path that is not there, that the system refuses, and one of the wrong kind; names with
    spaces throughout."""
    (place / "a directory").mkdir()
    (place / "a loop").symlink_to(place / "a loop")
    wrong = {
        "missing": "it does not exist",
        "a loop": "too many levels",
        "long" * 80: "file name too long",
    }
    for name in paths():
        faults = {**wrong, "a directory": "it is a directory"} if name in FILES else wrong
        for role in READERS[name]:
            for target, words in faults.items():
                path = str(place / target)
                if name == "model_path" and not target.isalpha():
                    continue  # no name for a model: test_settings.py
                value = f"mine={path}" if name == "models" else path
                model = (
                    []
                    if name.startswith(("model", "tokenizer", "chat"))
                    else ["--model", "echo=echo"]
                )
                argv = ["--port", "0", "--host", "127.0.0.1", *model, flag(name), value]
                named = (
                    "model_path: 'long"
                    if name == "model_path" and target.startswith("long")
                    else path
                )
                told = [] if named != path else [words]
                yield Cell(
                    role, argv, [f"{name}: ", named, *told, f"(from {flag(name)})", flag(name)]
                )
    binary = place / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    for name in ("prohibited_terms", "config"):
        argv = ["--port", "0", "--model", "echo=echo", flag(name), str(binary)]
        yield Cell("api", argv, [f"{name}: ", str(binary), "not UTF-8"])
    in_yaml = place / "settings.yaml"
    in_yaml.write_text(f"serve: {{hrm: {{tokenizer_path: {place}/missing}}}}")
    origin = f"(from {in_yaml}: serve.hrm.tokenizer_path)"
    yield Cell(
        "worker", ["--config", str(in_yaml)], ["tokenizer_path: ", "it does not exist", origin]
    )
    yield Cell(
        "worker",
        [],
        ["model_path: ", "it does not exist", "(from MODEL_PATH)"],
        {"MODEL_PATH": f"{place}/no"},
    )


def redis_cells() -> Iterator[Cell]:
    """URLs that redis-py takes apart late, or never."""
    wrong = {
        "redis://h:99999999/0": "host or port",
        "redis://:hush/hush@h/0": "%2F",
        "redis://h/x": "the database is a number",
        "redis://h/0?foo=bar": "'foo'",
        "redis://h/0?socket_timeout=x": "'socket_timeout'",
        "rediss://h/0?ssl_ca_certs=/no/where": "'/no/where': it does not exist",
        "redis://": "no host",
        "unix://": "no path",
    }
    for role in ("serve", "api", "worker", "jobs"):
        for url, words in wrong.items():
            argv = ["--model", "echo=echo", "--port", "0", "--redis-url", url]
            yield Cell(role, argv, ["redis_url: ", words, "(from --redis-url)"])


def outcomes(cells: list[Cell], redis_url: str, *, as_nobody: bool) -> list[dict[str, Any]]:
    asked = []
    for cell in cells:
        argv = ["--redis-url", redis_url, *cell.argv]  # so that no Redis is started
        asked.append({"role": cell.role, "argv": argv, "env": cell.env, "as_nobody": as_nobody})
    done = subprocess.run(
        [sys.executable, "-m", "tests.fixtures.e2e.refused"],
        input=json.dumps(asked),
        env=without_settings(os.environ) | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=110,
    )
    told: list[dict[str, Any]] = json.loads(done.stdout)
    return told


def check(cells: list[Cell], redis_url: str, *, as_nobody: bool = False) -> None:
    for cell, told in zip(cells, outcomes(cells, redis_url, as_nobody=as_nobody), strict=True):
        # The others are the log.
        sentences = [line for line in told["said"].splitlines() if not line.startswith("{")]
        assert told["status"] == 2, (str(cell), told)
        assert len(sentences) == 1, (str(cell), told)
        assert "hush" not in told["said"]
        missing = [word for word in cell.words if word not in sentences[0]]
        assert not missing, (str(cell), missing, sentences[0])


def test_every_port_setting_of_every_role(redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        check(list(port_cells(taken.getsockname()[1])), redis_url)


def test_every_path_setting_of_every_role(redis_url: str, tmp_path: Path) -> None:
    place = tmp_path / "with 'quotes' and spaces"
    place.mkdir()
    check(list(path_cells(place)), redis_url)


def test_a_redis_that_cannot_be_named(redis_url: str) -> None:
    check(list(redis_cells()), redis_url)


def test_no_port_or_path_setting_is_left_out() -> None:
    """A new one is told of here by its name."""
    cancellations = ("port", "path", "file", "template", "terms", "dir")
    # Of URLs.
    found = {name for name in Settings.model_fields if name.endswith(cancellations)} - {"root_path"}
    assert found | {"models", "config"} == set(READERS)


def test_what_may_not_be_read_is_told_alike(redis_url: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    (secret / "inside").mkdir(parents=True)
    secret.chmod(0)
    beyond = str(secret / "inside")
    cells = []
    for role, name in (
        ("api", "prohibited_terms"),
        ("jobs", "config"),
        ("worker", "model_path"),
        ("serve", "models"),
    ):
        value = f"mine={beyond}" if name == "models" else beyond
        model = [] if name.startswith("model") else ["--model", "echo=echo"]
        argv = ["--port", "0", *model, flag(name), value]
        cells.append(Cell(role, argv, [f"{name}: ", beyond, "permission denied", flag(name)]))
    try:
        check(cells, redis_url, as_nobody=True)
    finally:
        secret.chmod(0o700)
