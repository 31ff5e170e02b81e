"""All paths agree on few prompts, for tiny nets of random weights and the default model in int8."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.bench import agreement
from scripts.bench.model import causal, hrm_text
from scripts.bench.options import own_options
from shared.settings.settings import DEFAULT_MODEL
from shared.tasks.runner_options import KVDtype
from worker.engine.runner import RunnerOptions
from worker.models import linear


@pytest.mark.parametrize("write", [hrm_text, causal])
def test_every_path_says_what_transformers_says(
    write: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """P3: alone, batched, staggered, chunked, preempted, shared, resumed, forked, drafted: one
    answer."""
    path = write(tmp_path, "tiny")  # type: ignore[operator]
    assert agreement.agrees(
        RunnerOptions(path=str(path)), num_prompts=17, num_tokens=10, longest=60
    )
    assert capsys.readouterr().out.count("of 17 equal") == 11


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("write", [hrm_text, causal])
def test_every_path_says_what_rounded_keys_say(
    write: Callable[[Path, str], Path], kv_dtype: KVDtype, tmp_path: Path
) -> None:
    """P3: fresh, stored or scored, in every path keys and values are rounded before they are seen."""
    path = write(tmp_path, "tiny")
    options = RunnerOptions(path=str(path), own=own_options(path, kv_dtype))
    assert agreement.agrees(options, num_prompts=17, num_tokens=10, longest=60)


def test_int8_says_what_int8_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "MIN_INT8_WEIGHTS", 1)
    options = RunnerOptions(path=str(DEFAULT_MODEL), quantize="int8")
    assert agreement.agrees(options, num_prompts=17, num_tokens=10, longest=60)
    options = replace(options, own=own_options(DEFAULT_MODEL, "int8"))
    assert agreement.agrees(options, num_prompts=17, num_tokens=10, longest=60)


def test_a_wrong_answer_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert agreement.compare("x", [[1, 2]], [[1, 2]], lambda index, said: 1.0)
    assert not agreement.compare("x", [[1, 2]], [[1, 3]], lambda index, said: 0.5 + len(said))
    assert "differs at token 1, top-2 gap 1.50e+00" in capsys.readouterr().out
    assert agreement.compare("x", [[1, 2]], [[1, 3]], lambda index, said: 5e-5)
