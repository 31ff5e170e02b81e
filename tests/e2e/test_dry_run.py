"""`--dry-run` prints the models that load, or one sentence and a status (A76, A120)."""

import re
from pathlib import Path

from tests.fixtures.e2e.dry_run import dry_run
from tests.fixtures.worker.broken_models import sick_all, write_model


def test_it_loads_decodes_and_says_what_it_found() -> None:
    models = ["--model", "sample=models/hrm-text-math", "--model", "parrot=echo"]
    done = dry_run(*models, "--default-model", "parrot")
    assert done.returncode == 0, done.stderr
    assert "sample: HRM-Text" in done.stdout
    assert "parrot (default): echo" in done.stdout
    assert done.stdout.count("decoded one token") == 2


def test_a_bad_path_is_one_clear_sentence(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "nowhere", "does not exist"), (tmp_path, "no model we know")):
        done = dry_run("--model", f"mine={path}")
        assert done.returncode == 2
        assert reason in done.stderr
        assert "model 'mine'" in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_broken_checkpoint_is_one_clear_sentence(tmp_path: Path) -> None:
    """A worker with NaN among its weights does not start, and its sentence names the model."""
    broken = sick_all("hrm-text", write_model("hrm-text", tmp_path / "whole"), tmp_path / "broken")
    done = dry_run("--model", f"mine={broken}")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(r"model 'mine' loads but does not work: .* not finite", last), done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_directory_is_one_clear_sentence(tmp_path: Path) -> None:
    """The last line of a process with cut weights has the fault, the file and the remedy."""
    model = write_model("causal", tmp_path / "cut")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    done = dry_run("--model", f"mine={model}")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert f"model 'mine': {weights} cannot be read" in last
    assert "copy it again" in last
    assert "Traceback" not in done.stderr
