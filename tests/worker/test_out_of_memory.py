"""A step without enough memory is repeated in smaller steps, with the same answers.

A job that cannot be made smaller ends with a clear error.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from shared.errors import FleetError
from shared.messages import Done, Failed, Generate, Sampling, Scored
from tests.fixtures.planned import PLANS, PlannedSequence, Reuse, check, work
from tests.fixtures.worker.broken_models import write_model
from tests.fixtures.worker.ghost import Ghost, answer, score
from tests.fixtures.worker.stepping import end_of, generate_all
from worker.engine.engine import Engine
from worker.engine.noise import fold
from worker.engine.request import Emission, SequenceWork
from worker.engine.runner import OutOfMemory, RunnerOptions
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Encoded, Slice, StepResult
from worker.kv.attention import AttentionPlan
from worker.kv.store import KVStore
from worker.runners.allocation import tells_out_of_memory
from worker.runners.paged import PagedRunner
from worker.runners.registry import load_runner


class Cramped(Ghost):
    """A ghost with memory for `room` tokens a step; it records the sizes of its steps."""

    def __init__(self, room: int, **options: Any) -> None:
        super().__init__(**options)
        self.room = room
        self.sizes: list[int] = []

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        size = 0
        for part in slices:
            size += part.num_tokens
            for continuation in part.continuations:
                size += len(continuation)
        self.sizes.append(size)

        if size > self.room:
            raise OutOfMemory("room for no more")
        return super().step(slices)


def generate(key: str, prompt: tuple[int, ...], max_tokens: int) -> SequenceWork:
    return SequenceWork(key, Encoded(prompt, max_tokens), Sampling(max_tokens, seed=5))


def finish(ghost: Ghost, works: list[SequenceWork]) -> list[Emission]:
    """Run the works until all have ended, and return all emissions."""
    emissions: list[Emission] = []
    engine = Engine(ghost, emissions.extend)
    for submitted in works:
        engine.submit(submitted)
    while engine.has_work:
        engine.step()
    return emissions


def ids(emissions: list[Emission], key: str) -> list[int]:
    """Return the tokens of one job."""
    token_ids: list[int] = []
    for emission in emissions:
        if emission.key == key:
            token_ids.extend(emission.ids)
    return token_ids


def ends(emissions: list[Emission]) -> dict[str, Done | Failed]:
    """Return the end of each job by its key."""
    by_key = {}
    for emission in emissions:
        if emission.ended is not None:
            by_key[emission.key] = emission.ended
    return by_key


@pytest.mark.parametrize("room", [1, 3, 10, 40])
def test_smaller_steps_give_the_same_answers(room: int) -> None:
    """Batches are halved, then prompts are cut, down to one token; every answer is right."""
    ghost = Cramped(room, num_pages=200, max_batch=6, step_tokens=64)
    prompts = {}
    works = []
    for number in range(5):
        key = str(number)
        prompts[key] = tuple(range(number + 1, number + 12 + 7 * number))
        works.append(generate(key, prompts[key], max_tokens=6))

    emissions = finish(ghost, works)

    assert max(ghost.sizes) > room
    for key, prompt in prompts.items():
        assert ids(emissions, key) == answer(prompt, 6, fold(5, 0))
        assert isinstance(ends(emissions)[key], Done)


def test_continuations_are_scored_in_smaller_groups() -> None:
    """Continuations that do not fit into one step are scored in several, with the same scores."""
    ghost = Cramped(6, num_pages=100, step_tokens=64)
    context = (1, 2, 3, 4, 5)
    continuations = tuple((number, number + 1) for number in range(1, 12))
    encoded = Encoded(context, continuations=continuations)

    emissions = finish(ghost, [SequenceWork("a", encoded, sampling=None)])

    done = ends(emissions)["a"]
    assert isinstance(done, Done)
    scores = end_of(done, Scored).scores
    for continuation, scored in zip(continuations, scores, strict=True):
        assert scored.log_likelihood == score(context, continuation)


def test_what_cannot_be_made_smaller_fails_alone_and_the_engine_lives() -> None:
    """A prefix-LM's prompt that does not fit fails; its batch mates go on.

    Such a prompt is computed in one step or not at all.
    """
    ghost = Cramped(20, num_pages=100, step_tokens=64, is_prefix_lm=True, reuse="prompt")
    works = [
        generate("a", (1,) * 9, max_tokens=5),
        generate("big", (2,) * 21, max_tokens=5),
        generate("b", (3,) * 20, max_tokens=5),
    ]

    emissions = finish(ghost, works)

    failed = ends(emissions)["big"]
    assert isinstance(failed, Failed)
    assert failed.code == "out_of_memory"
    assert "'ghost'" in failed.message
    assert "21 tokens" in failed.message
    assert ids(emissions, "a") == answer((1,) * 9, 5, fold(5, 0))
    assert ids(emissions, "b") == answer((3,) * 20, 5, fold(5, 0))


def test_a_replayed_answer_may_be_cut_where_its_prompt_may_not() -> None:
    """After a takeover a prefix-LM's prompt runs in one step, and the replayed tokens in parts."""
    prompt = (1,) * 9
    whole = answer(prompt, 20, fold(5, 0))
    ghost = Cramped(10, num_pages=100, step_tokens=64, is_prefix_lm=True, reuse="prompt")
    taken_over = SequenceWork(
        "a",
        Encoded(prompt, max_tokens=20),
        Sampling(max_tokens=20, seed=5),
        replayed_ids=(tuple(whole[:15]),),
    )

    emissions = finish(ghost, [taken_over])

    assert ids(emissions, "a") == whole[15:]


def test_steps_stay_small_for_a_while_and_grow_again() -> None:
    """After the first refusal prompts come in parts that fit, so that few steps fail."""
    ghost = Cramped(20, num_pages=900, max_batch=2, step_tokens=64, reuse="none")
    long = generate("a", (1,) * 600, max_tokens=2)
    longer = generate("b", (2,) * 600, max_tokens=150)

    finish(ghost, [long, longer])

    assert ghost.sizes[0] > 20
    num_refused = sum(size > 20 for size in ghost.sizes)
    assert 2 <= num_refused <= 10
    assert len(ghost.sizes) > 60

    # A halved budget stays for 64 plans and then grows back.
    scheduler = Scheduler(ghost.spec)
    scheduler.shrink(64)
    assert scheduler.budget == 32
    for _ in range(64):
        scheduler.plan()
    assert scheduler.budget == 32
    for _ in range(200):
        scheduler.plan()
    assert scheduler.budget == 64, "never more than the spec allows"


@settings(max_examples=100, deadline=None)
@given(
    st.lists(PLANS, min_size=1, max_size=7),
    st.sampled_from(["prefix", "prompt", "none"]),
    st.booleans(),
    st.integers(14, 40),
    st.integers(12, 30),
)
def test_any_load_on_any_memory_ends_well(
    loads: list[PlannedSequence], reuse: Reuse, is_prefix_lm: bool, room: int, num_pages: int
) -> None:
    """Sequences are shared, forked, preempted, cut and halved, and yet every answer is right.

    In the end every page is free again.
    """
    if is_prefix_lm and reuse == "prefix":
        reuse = "prompt"
    ghost = Cramped(
        room,
        num_pages=num_pages,
        max_batch=4,
        step_tokens=64,
        reuse=reuse,
        is_prefix_lm=is_prefix_lm,
    )
    emissions: dict[str, list[Emission]] = {}

    def note(step_emissions: list[Emission]) -> None:
        for emission in step_emissions:
            emissions.setdefault(emission.key, []).append(emission)

    engine = Engine(ghost, note)
    for number, load in enumerate(loads):
        engine.submit(work(str(number), load))
    while engine.has_work:
        engine.step()

    for number, load in enumerate(loads):
        of_load = emissions[str(number)]
        if isinstance(of_load[-1].ended, Failed):
            assert is_prefix_lm
            assert len(load.prompt) > room
        else:
            check(load, of_load)
    cache = engine.scheduler.cache
    assert cache is not None
    cache.tree.evict(num_pages)
    assert cache.pages.num_free == num_pages


def real_refusal() -> Tensor:
    """Raise torch's own error: no machine has this much memory."""
    return torch.empty(1 << 60)


@pytest.mark.parametrize("kind", ["causal", "hrm-text"])
def test_a_real_allocators_refusal_makes_smaller_steps(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's own error in the middle of a forward leads to smaller steps and the same answers."""
    options = RunnerOptions(str(write_model(kind, tmp_path / "m")), max_batch=4, page_size=4)
    sampling = Sampling(max_tokens=6, seed=0, temperature=0.0, ignore_eos=True)
    tasks = []
    for number in range(4):
        prompt = tuple(range(20 + number, 38 + 2 * number))
        tasks.append(Generate(prompt, sampling))
    expected = generate_all(load_runner("auto", options), tasks)
    runner = load_runner("auto", options)
    assert isinstance(runner, PagedRunner)
    real = runner.net.hidden
    sizes = []

    def hidden(ids: Tensor, plan: AttentionPlan, store: KVStore | None) -> Tensor:
        sizes.append(len(ids))
        out = real(ids, plan, store)
        if len(ids) > 30:
            return real_refusal()
        return out

    monkeypatch.setattr(runner.net, "hidden", hidden)
    assert generate_all(runner, tasks) == expected
    assert max(sizes) > 30, "nothing was refused, so this proved nothing"


class Step:
    """A runner that fails with `error`."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    @tells_out_of_memory
    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        raise self._error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (
            RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes."
            ),
            True,
        ),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 5 bytes."),
            True,
        ),
        (RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"), True),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            True,
        ),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"), False),
    ],
)
def test_only_a_lack_of_memory_is_told_as_one(error: Exception, told: bool) -> None:
    """Every allocator's refusal becomes `OutOfMemory`; any other error stays as it is."""
    if not told:
        with pytest.raises(RuntimeError) as other:
            Step(error).step([])
        assert not isinstance(other.value, OutOfMemory)
        return

    with pytest.raises(OutOfMemory) as refused:
        Step(error).step([])
    # A context would keep alive the tensors that the step had allocated.
    assert refused.value.__context__ is None


@pytest.mark.skipif(
    sys.platform != "linux", reason="limits its address space, and reads how much it has from /proc"
)
def test_a_process_without_memory_goes_on(tmp_path: Path) -> None:
    """A real process that may not grow enough for a prompt computes it in parts and answers."""
    command = [sys.executable, "-m", "tests.fixtures.worker.cramped_process", str(tmp_path), "24"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, env=environment
    )

    report = json.loads(done.stdout)
    assert report["same"] is True
    assert report["refusals"], "nothing was refused, so this proved nothing"
    for refusal in report["refusals"]:
        assert "allocate" in refusal
