"""The benchmarks run on a tiny net: every row prints rates, finite ratios and equal answers."""

import math
import re
import subprocess
from pathlib import Path

import pytest

from scripts.bench import beside, drafts, engine, fleet, floor, kv_accuracy, kv_steps, model, steps
from scripts.bench.measure import Comparison
from tests.fixtures.slowness import slowness
from worker.native.library import library

ONCE = ["--size", "tiny", "--quick", "--rounds", "1", "--threads", "1", "--baseline-threads", "1"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nets")


def ratios(text: str) -> list[float]:
    """Return the ratios of all rows, which are finite. One below 0.005 is printed as zero."""
    numbers = [float(number) for number in re.findall(r"ratio (\S+)", text)]
    assert numbers, text
    for number in numbers:
        assert math.isfinite(number), text
        assert number >= 0, text
    return numbers


def test_steps_are_timed_with_our_kernels_and_without(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps.main([*ONCE, "--cache", str(cache), "--dtypes", "float32,int8"])
    text = capsys.readouterr().out
    for dtype in ("float32", "int8"):
        for side in steps.SIDES:
            [row] = re.findall(rf"^\| {dtype} \| {side} \| (.*) \|$", text, re.MULTILINE)
            assert all(float(cell) > 0 for cell in row.split(" | "))
            assert len(row.split(" | ")) == 4


def test_steps_are_compared_with_their_floor(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*ONCE[:-2], "--cache", str(cache), "--dtypes", "float32,int8"]
    floor.main(words)
    rows = re.findall(r"^\| (float32|int8) \| (.*) \|$", capsys.readouterr().out, re.MULTILINE)
    assert [dtype for dtype, _ in rows] == ["float32", "int8"]
    for _, row in rows:
        step_ms, products_ms, _, _, floor_ms, ratio = map(float, row.split(" | "))
        assert 0 < products_ms <= floor_ms
        assert ratio > 0
        assert step_ms > 0


def test_drafts_are_timed_and_change_no_answer(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--count", "1", "--rounds", "1", "--tokens", "12", "--concurrent", "1", "2"]
    if library() is None:
        pytest.skip("drafts need the kernels in C")
    assert drafts.main(words) == 0
    text = capsys.readouterr().out
    assert len(ratios(text)) == 2
    assert "answers equal: True" in text


def test_steps_are_timed_for_every_dtype_of_keys_and_values(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kv_steps.main([*ONCE, "--cache", str(cache), "--lengths", "20,40"])
    text = capsys.readouterr().out
    for length in (20, 40):
        for kv_dtype in ("auto", "bfloat16", "int8"):
            [row] = re.findall(rf"^\| {length} \| {kv_dtype} \| (.*) \|$", text, re.MULTILINE)
            assert all(float(cell) > 0 for cell in row.split(" | "))


def test_what_fewer_bits_save_and_change(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model.causal(cache, "tiny")
    kv_accuracy.main(["--model-path", str(path), "--prompts", "4"])
    rows = re.findall(
        r"^\| (auto|bfloat16|int8) \| (.*) \|$", capsys.readouterr().out, re.MULTILINE
    )
    cells = {kv_dtype: row.split(" | ") for kv_dtype, row in rows}
    # Two layers with two heads of 16: four bytes a number, two, and one with a scale a head.
    assert [cells[kv_dtype][0] for kv_dtype in ("auto", "bfloat16", "int8")] == [
        "512",
        "256",
        "160",
    ]
    assert cells["auto"][2:] == ["1.0000 of 256", "0.0000", "0.000", "4 of 4", "1.0000"]
    assert 0 < float(cells["bfloat16"][3]) < float(cells["int8"][3]) < 0.2


def test_every_row_of_the_engine_prints_ratios(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.main([*ONCE, "--cache", str(cache)])
    text = capsys.readouterr().out
    git = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout
    assert text.startswith(f"commit {commit[:12]}")
    for row in (
        "decode x4",
        "single",
        "prefill x4",
        "staggered x4 all",
        "scoring 64+4x8",
        "prefix 64+16",
        "prompt of",
    ):
        assert re.search(rf"^{re.escape(row)} .*ratio", text, re.MULTILINE), text
    assert len(ratios(text)) == 16
    assert re.findall(r"answers equal: (.*)", text) == ["4 of 4", "1 of 1", "4 of 4", "4 of 4"]
    assert "first tokens equal: 1 of 1" in text
    (gap,) = re.findall(r"differ by (\S+)", text)
    assert float(gap) < 1e-3


def test_the_fleet_beside_its_engines(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet.main([*ONCE, "--cache", str(cache)])
    text = capsys.readouterr().out
    assert len(ratios(text)) == 4
    assert "answers of fleet and theirs equal: 4 of 4" in text


def test_tokens_beside_a_long_task(capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens go on beside a long task.

    On a machine that does nothing else they come as evenly as alone (docs/benchmarks.md).
    """
    stretched = slowness()
    beside.main(["--seconds", "2"])
    stretched = max(stretched, slowness())
    text = capsys.readouterr().out
    assert len(re.findall(r"^round \d: alone p50 .* beside p50 .* p99 x", text, re.MULTILINE)) == 3
    [ratio] = re.findall(r"median (\S+)", text)
    assert 0 < float(ratio) < 10 * stretched, text


def test_an_unknown_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        engine.main(["--rows", "decode,dreams"])
    assert "'dreams'" in capsys.readouterr().err


def test_a_ratio_above_one_means_that_ours_is_faster() -> None:
    """The ratio compares the best rounds; a disturbed round only shows in the spread."""
    speed = Comparison()
    speed.add(ours=1.0, theirs=3.0)
    speed.add(ours=9.0, theirs=2.0)
    assert (
        "ours     100.0 tok/s  theirs      50.0 tok/s  ratio 2.00  (median 1.61, 0.22 to 3.00)"
        in speed.rates("x", 100, "tok/s")
    )
    assert "hit     100.0 ms  cold     200.0 ms  ratio 2.00" in speed.latencies(
        "x", ("hit", "cold"), parts=10
    )


def test_every_token_of_the_vocabulary_is_a_text_of_its_own() -> None:
    words = model.tokenizer(1000)
    assert len(words) == 1000

    texts = set()
    for token in range(model.FIRST_WORD, 1000):
        text = words.decode([token])
        assert text.isalpha()
        assert text not in texts
        texts.add(text)
