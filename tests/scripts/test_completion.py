"""Completion, as shells ask for it: bash itself, and the protocols of zsh and fish."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.cli.aios import COMMANDS, main
from shared.commands import completion_variable

ROOT = Path(__file__).resolve().parents[2]
LINES = {
    "aios sta": ["status"],
    "aios serve hrm --max-b": ["--max-batch-size", "--max-body-bytes"],
    "aios keys create a --best-class ": ["interactive", "default", "bulk"],
}
ASKED = {
    **LINES,
    "aios ": list(COMMANDS),
    "aios keys ": ["create", "list", "revoke"],
    "aios serve hrm --device c": ["cpu", "cuda"],
    "aios models fetch minilm-": ["minilm-sentiment"],
    "aios completion z": ["zsh"],
}


def test_bash_completes(tmp_path: Path) -> None:
    command = tmp_path / "aios"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m scripts.cli.aios "$@"\n')
    command.chmod(0o755)
    script = ['eval "$(aios completion bash)"']
    for line in LINES:
        words = " ".join(f"'{word}'" for word in line.split(" "))
        # As bash calls the function that `complete -F` names.
        script.append(f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))")
        script.append("COMPREPLY=(); _aios_completion aios; echo ${COMPREPLY[*]}")
    script.append("complete -p aios")
    env = {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    printed = subprocess.check_output(
        ["bash", "--norc", "-c", "\n".join(script)], env=env, text=True, timeout=120
    )
    *answers, registered = printed.splitlines()
    assert "-F _aios_completion aios" in registered
    for expected, answer in zip(LINES.values(), answers, strict=True):
        assert answer.split() == expected


@pytest.mark.parametrize("line", ASKED)
def test_commands_flags_and_values_are_completed(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(completion_variable("aios"), "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", f"{len(line.split(' ')) - 1}")
    with pytest.raises(SystemExit):
        main([])
    found = [word.partition(",")[2] for word in capsys.readouterr().out.splitlines()]
    assert found == ASKED[line]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_ask_in_their_own_way(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    variable = completion_variable("aios")
    assert f"{variable}={shell}_complete" in script

    monkeypatch.setenv(variable, f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", "aios models un")
    monkeypatch.setenv("COMP_CWORD", "un" if shell == "fish" else "2")
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    answer = capsys.readouterr().out
    for word in ("unpin", "unload", "Let it make room for others again"):
        assert word in answer
    assert "list" not in answer
