"""A setting that cannot be used ends every role with status 2 and one sentence.

The sentence names the setting, its value, the value's source and the remedy. A role refuses the
settings that it reads. So there is a cell for each role, each port and path that it reads, and each
fault that these can have.
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
    "ui_port": ("serve",),
    "ui_config": ("serve",),
    "prohibited_terms": ("serve", "api"),
    "model_path": ("serve", "worker"),
    "tokenizer_path": ("serve", "worker"),
    "chat_template": ("serve", "worker"),
    "models": ("serve", "worker"),
    "config": ("serve", "api", "worker", "jobs"),
}
FILES = ("prohibited_terms", "chat_template", "config", "ui_config")
"""Settings that need a file. A model and a tokenizer may be a directory or a file."""
FOREIGN = "x86_64-conda-linux-gnu"
"""The value of HOST that conda's compilers set."""


@dataclass
class Cell:
    """The arguments of one role, and the words that its refusal must hold."""

    role: str
    argv: list[str]
    words: list[str]
    env: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.role} {' '.join(self.argv)} {self.env}"


def flag(name: str) -> str:
    if name == "models":
        return "--model"
    return "--" + name.replace("_", "-")


def source(name: str) -> str:
    """Return the words of a refusal that name the flag."""
    return f"(from {flag(name)})"


def value_of(name: str, path: Path) -> str:
    """Return the flag's value for a path: a model in `--model` has a name before it."""
    if name == "models":
        return f"mine={path}"
    return str(path)


def ports() -> list[str]:
    return [name for name in READERS if name.endswith("port")]


def paths() -> list[str]:
    return [name for name in READERS if not name.endswith("port")]


def port_cells(taken: int) -> Iterator[Cell]:
    """Yield a cell for each port that a role opens and each fault of a port or its host.

    The port is in use, or the host belongs to nobody or to another machine.
    """
    for name in ports():
        for role in READERS[name]:
            yield from port_cells_of(role, name, taken)
    for host in ("a" * 300, "a..b", ":::"):
        yield Cell("api", ["--port", "0", "--host", host], ["host: ", host, "(from --host)"])


def port_cells_of(role: str, name: str, taken: int) -> Iterator[Cell]:
    port = ["--port", "0"]
    if name == "port":
        port = []
    if name == "ui_port":
        port = ["--port", "0", "--ui"]

    yield Cell(
        role,
        [*port, "--host", "127.0.0.1", flag(name), str(taken)],
        [f"{name}: ", str(taken), "address already in use", source(name)],
    )
    variable = f"AIOS_{name.upper()}"
    yield Cell(
        role,
        [*port, "--host", "127.0.0.1"],
        [f"{name}: ", f"(from {variable})"],
        env={variable: str(taken)},
    )
    # 192.0.2.0/24 is kept for documentation: no machine has such an address.
    hosts = {"HOST": FOREIGN, "AIOS_HOST": "192.0.2.7"}
    host_name = "host"
    if name == "ui_port":
        hosts = {"AIOS_UI_HOST": "192.0.2.7"}
        host_name = "ui_host"
    for variable, host in hosts.items():
        yield Cell(
            role,
            [*port, flag(name), "0" if name != "ui_port" else "8501"],
            [f"{host_name}: ", repr(host), f"(from {variable})", flag(host_name)],
            env={variable: host},
        )


def path_cells(folder: Path) -> Iterator[Cell]:
    """Yield a cell for each path that a role reads and each fault of a path.

    The path is missing, of the wrong kind, or the system refuses it. Names have spaces.
    """
    (folder / "a directory").mkdir()
    (folder / "a loop").symlink_to(folder / "a loop")
    wrong_for_all = {
        "missing": "it does not exist",
        "a loop": "too many levels",
        "long" * 80: "file name too long",
    }
    for name in paths():
        faults = dict(wrong_for_all)
        if name in FILES:
            faults["a directory"] = "it is a directory"
        for role in READERS[name]:
            for target, fault in faults.items():
                # "a loop" is no name for a model, which is another fault: test_settings.py.
                if name == "model_path" and not target.isalpha():
                    continue
                yield path_cell(role, name, folder / target, fault)

    yield from file_cells(folder)


def path_cell(role: str, name: str, path: Path, fault: str) -> Cell:
    argv = ["--port", "0", "--host", "127.0.0.1"]
    if not name.startswith(("model", "tokenizer", "chat")):
        argv += ["--model", "echo=echo"]
    if name == "ui_config":
        argv.append("--ui")
    argv += [flag(name), value_of(name, path)]

    # A long name is refused as the model's name, before the path is opened.
    if name == "model_path" and path.name.startswith("long"):
        words = ["model_path: 'long"]
    else:
        words = [str(path), fault]
    return Cell(role, argv, [f"{name}: ", *words, source(name), flag(name)])


def file_cells(folder: Path) -> Iterator[Cell]:
    """Yield cells for files that are not text, and for paths from YAML and the environment."""
    binary = folder / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    for name in ("prohibited_terms", "config"):
        argv = ["--port", "0", "--model", "echo=echo", flag(name), str(binary)]
        yield Cell("api", argv, [f"{name}: ", str(binary), "not UTF-8"])

    in_yaml = folder / "settings.yaml"
    in_yaml.write_text(f"serve: {{hrm: {{tokenizer_path: {folder}/missing}}}}")
    origin = f"(from {in_yaml}: serve.hrm.tokenizer_path)"
    yield Cell(
        "worker", ["--config", str(in_yaml)], ["tokenizer_path: ", "it does not exist", origin]
    )
    yield Cell(
        "worker",
        [],
        ["model_path: ", "it does not exist", "(from MODEL_PATH)"],
        env={"MODEL_PATH": f"{folder}/no"},
    )


def redis_cells() -> Iterator[Cell]:
    """Yield cells with URLs that redis-py parses late, or never."""
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
    """Run each cell and return its status and its output."""
    runs = []
    for cell in cells:
        # With a URL no role starts a Redis of its own.
        argv = ["--redis-url", redis_url, *cell.argv]
        runs.append({"role": cell.role, "argv": argv, "env": cell.env, "as_nobody": as_nobody})
    done = subprocess.run(
        [sys.executable, "-m", "tests.fixtures.e2e.refused"],
        input=json.dumps(runs),
        env=without_settings(os.environ) | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=110,
    )
    parsed: list[dict[str, Any]] = json.loads(done.stdout)
    return parsed


def check(cells: list[Cell], redis_url: str, *, as_nobody: bool = False) -> None:
    for cell, outcome in zip(cells, outcomes(cells, redis_url, as_nobody=as_nobody), strict=True):
        assert outcome["status"] == 2, (str(cell), outcome)
        assert "hush" not in outcome["said"]

        # Lines that begin with a brace are the log.
        sentences = [line for line in outcome["said"].splitlines() if not line.startswith("{")]
        assert len(sentences) == 1, (str(cell), outcome)
        for words in cell.words:
            assert words in sentences[0], (str(cell), words, sentences[0])


def test_every_port_setting_of_every_role(redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        check(list(port_cells(taken.getsockname()[1])), redis_url)


def test_every_path_setting_of_every_role(redis_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "with 'quotes' and spaces"
    folder.mkdir()
    check(list(path_cells(folder)), redis_url)


def test_a_redis_that_cannot_be_named(redis_url: str) -> None:
    check(list(redis_cells()), redis_url)


def test_no_port_or_path_setting_is_left_out() -> None:
    """A new setting whose name ends like a port or a path has to be in READERS."""
    endings = ("port", "path", "file", "template", "terms", "dir")
    names = {name for name in Settings.model_fields if name.endswith(endings)}
    # The root path is a part of URLs, not of the file system.
    names.remove("root_path")
    assert names | {"models", "config", "ui_config"} == set(READERS)


def test_what_may_not_be_read_is_told_alike(redis_url: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    (secret / "inside").mkdir(parents=True)
    secret.chmod(0)
    beyond = secret / "inside"
    rows = [
        ("api", "prohibited_terms"),
        ("jobs", "config"),
        ("worker", "model_path"),
        ("serve", "models"),
    ]
    cells = []
    for role, name in rows:
        argv = ["--port", "0"]
        if not name.startswith("model"):
            argv += ["--model", "echo=echo"]
        argv += [flag(name), value_of(name, beyond)]
        words = [f"{name}: ", str(beyond), "permission denied", flag(name)]
        cells.append(Cell(role, argv, words))
    try:
        check(cells, redis_url, as_nobody=True)
    finally:
        secret.chmod(0o700)
