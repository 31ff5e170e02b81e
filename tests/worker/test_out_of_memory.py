"""Too little memory for a step: smaller steps, the same answers, and a clear end for what cannot be
made smaller."""

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
    """Has memory for `room` tokens a step, and notes the sizes it was asked for."""

    def __init__(self, room: int, **options: Any) -> None:
        super().__init__(**options)
        self.room = room
        self.asked: list[int] = []

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        self.asked.append(
            sum(part.num_tokens + sum(map(len, part.continuations)) for part in slices)
        )
        if self.asked[-1] > self.room:
            raise OutOfMemory("room for no more")
        return super().step(slices)


def generate(key: str, prompt: tuple[int, ...], max_tokens: int) -> SequenceWork:
    return SequenceWork(key, Encoded(prompt, max_tokens), Sampling(max_tokens, 5))


def finish(ghost: Ghost, works: list[SequenceWork]) -> list[Emission]:
    said: list[Emission] = []
    engine = Engine(ghost, said.extend)
    for item in works:
        engine.submit(item)
    while engine.has_work:
        engine.step()
    return said


def ids(said: list[Emission], key: str) -> list[int]:
    return [token for item in said if item.key == key for token in item.ids]


def ends(said: list[Emission]) -> dict[str, Done | Failed]:
    return {item.key: item.ended for item in said if item.ended is not None}


@pytest.mark.parametrize("room", [1, 3, 10, 40])
def test_smaller_steps_give_the_same_answers(room: int) -> None:
    """Batches are halved, then prompts are cut, down to one token: everybody is answered, and
    rightly."""
    ghost = Cramped(room, num_pages=200, max_batch=6, step_tokens=64)
    prompts = {
        str(number): tuple(range(number + 1, number + 12 + 7 * number)) for number in range(5)
    }
    said = finish(ghost, [generate(key, prompt, 6) for key, prompt in prompts.items()])
    assert any(size > room for size in ghost.asked)
    for key, prompt in prompts.items():
        assert ids(said, key) == answer(prompt, 6, fold(5, 0))
    assert {type(end) for end in ends(said).values()} == {Done}


def test_continuations_are_scored_in_smaller_groups() -> None:
    ghost = Cramped(6, num_pages=100, step_tokens=64)
    continuations = tuple((number, number + 1) for number in range(1, 12))
    said = finish(
        ghost, [SequenceWork("a", Encoded((1, 2, 3, 4, 5), continuations=continuations), None)]
    )
    done = ends(said)["a"]
    assert isinstance(done, Done)
    scores = end_of(done, Scored).scores
    assert [item.log_likelihood for item in scores] == [
        score((1, 2, 3, 4, 5), tail) for tail in continuations
    ]


def test_what_cannot_be_made_smaller_fails_alone_and_the_engine_lives() -> None:
    """A prefix-LM's prompt is computed at once or not at all; the batch mates of one that does not
    fit go on."""
    ghost = Cramped(20, num_pages=100, step_tokens=64, is_prefix_lm=True, reuse="prompt")
    works = [generate("a", (1,) * 9, 5), generate("big", (2,) * 21, 5), generate("b", (3,) * 20, 5)]
    said = finish(ghost, works)
    failed = ends(said)["big"]
    assert isinstance(failed, Failed)
    assert failed.code == "out_of_memory"
    assert "'ghost'" in failed.message and "21 tokens" in failed.message
    assert ids(said, "a") == answer((1,) * 9, 5, fold(5, 0))
    assert ids(said, "b") == answer((3,) * 20, 5, fold(5, 0))


def test_a_replayed_answer_may_be_cut_where_its_prompt_may_not() -> None:
    """After a takeover of a prefix-LM's job: prompt at once, what was said since in parts."""
    prompt = (1,) * 9
    said = answer(prompt, 20, fold(5, 0))
    ghost = Cramped(10, num_pages=100, step_tokens=64, is_prefix_lm=True, reuse="prompt")
    taken_over = SequenceWork("a", Encoded(prompt, 20), Sampling(20, 5), (tuple(said[:15]),))
    assert ids(finish(ghost, [taken_over]), "a") == said[15:]


def test_steps_stay_small_for_a_while_and_grow_again() -> None:
    """After the first refusal prompts come in parts that fit, so that not every step must fail
    first."""
    ghost = Cramped(20, num_pages=900, max_batch=2, step_tokens=64, reuse="none")
    finish(ghost, [generate("a", (1,) * 600, 2), generate("b", (2,) * 600, 150)])
    refused = [number for number, size in enumerate(ghost.asked) if size > 20]
    assert refused[0] == 0
    assert 2 <= len(refused) <= 10
    assert len(ghost.asked) > 60
    scheduler = Scheduler(ghost.spec)
    scheduler.shrink(64)
    assert scheduler._budget == 32
    for _ in range(64):
        scheduler.plan()
    assert scheduler._budget == 32
    for _ in range(200):
        scheduler.plan()
    assert scheduler._budget == 64, "never more than the spec allows"


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
    """Shared, forked, preempted, cut and halved: nobody reads a wrong place, every page comes
    back."""
    reuse = "prompt" if is_prefix_lm and reuse == "prefix" else reuse
    ghost = Cramped(
        room,
        num_pages=num_pages,
        max_batch=4,
        step_tokens=64,
        reuse=reuse,
        is_prefix_lm=is_prefix_lm,
    )
    said: list[Emission] = []
    engine = Engine(ghost, said.extend)
    for number, load in enumerate(loads):
        engine.submit(work(str(number), load))
    while engine.has_work:
        engine.step()
    for number, load in enumerate(loads):
        own = [item for item in said if item.key == str(number)]
        if isinstance(own[-1].ended, Failed):
            assert is_prefix_lm and len(load.prompt) > room
        else:
            check(load, own)
    cache = engine._scheduler._cache
    assert cache is not None
    cache.tree.evict(num_pages)
    assert cache.pages.num_free == num_pages


def real_refusal() -> Tensor:
    """What torch says when there is no memory: no machine has this much."""
    return torch.empty(1 << 60)


@pytest.mark.parametrize("kind", ["causal", "hrm-text"])
def test_a_real_allocators_refusal_makes_smaller_steps(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: torch's own error in the middle of a forward, and answers as if there had been
    none."""
    options = RunnerOptions(str(write_model(kind, tmp_path / "m")), max_batch=4, page_size=4)
    prompts = [tuple(range(20 + number, 38 + 2 * number)) for number in range(4)]
    tasks = [
        Generate(prompt, Sampling(6, seed=0, temperature=0.0, ignore_eos=True))
        for prompt in prompts
    ]
    expected = generate_all(load_runner("auto", options), tasks)
    runner = load_runner("auto", options)
    assert isinstance(runner, PagedRunner)
    real = runner._net.hidden
    sizes = []

    def hidden(ids: Tensor, plan: AttentionPlan, store: KVStore | None) -> Tensor:
        sizes.append(len(ids))
        out = real(ids, plan, store)
        return out if len(ids) <= 30 else real_refusal()

    monkeypatch.setattr(runner._net, "hidden", hidden)
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
    with pytest.raises(OutOfMemory if told else RuntimeError) as raised:
        Step(error).step([])
    assert isinstance(raised.value, OutOfMemory) == told
    if told:
        assert raised.value.__context__ is None, (
            "the error would keep alive what the step had allocated"
        )


@pytest.mark.skipif(
    sys.platform != "linux", reason="limits its address space, and reads how much it has from /proc"
)
def test_a_process_without_memory_goes_on(tmp_path: Path) -> None:
    """No fake: a process that may not grow by what a prompt needs answers all the same, in
    parts."""
    command = [sys.executable, "-m", "tests.fixtures.worker.cramped_process", str(tmp_path), "24"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, env=environment
    )
    told = json.loads(done.stdout)
    assert told["same"] is True
    assert told["refusals"], "nothing was refused, so this proved nothing"
    assert all("allocate" in refusal for refusal in told["refusals"])
