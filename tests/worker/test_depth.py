"""Requests at other depths: each is answered as by a model that always runs at its depth."""

from pathlib import Path

import msgspec
import pytest
import torch

from scripts.train.special_tokens import byte_tokenizer
from shared.errors import InvalidRequest
from shared.messages import Depth, Generate, Read, Sampling, Score, Task
from shared.tasks.runner_options import HrmTextOptions, OptionError, PuzzleOptions, validated
from tests.fixtures.tiny_hrm_text import PROMPTS, write_tiny
from tests.fixtures.worker import tiny_causal
from tests.fixtures.worker.act_fixtures import Net, write_bundle
from tests.fixtures.worker.options import options_for
from tests.fixtures.worker.stepping import Serving, generate_all, run, score_all
from worker.engine.depth import check_depth
from worker.engine.runner import Runner
from worker.models.errors import ModelFormatError
from worker.runners import hrm_text
from worker.runners.hrm_act import ActRunner
from worker.runners.hrm_act_causal import ActCausalNet
from worker.runners.paged import PagedRunner
from worker.runners.registry import load_runner

GREEDY = Sampling(max_tokens=12, seed=0, temperature=0.0)
CYCLES = (None, "2x1", "1x3", "1x5", "2x2")
"""Depths of a network of 2 x 3 cycles: its own, fewer L cycles, and others as cheap."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hrm-text")
    write_tiny(path)
    return path


def load(path: Path, **options: object) -> PagedRunner:
    return hrm_text.load(options_for(path, **{"max_batch": 8, "page_size": 4, **options}))


def at(task: Generate, cycles: str | None) -> Generate:
    depth = None if cycles is None else Depth(cycles=cycles)
    return msgspec.structs.replace(task, depth=depth)


def alone(path: Path, task: Generate) -> list[int]:
    """Return the answer of a model whose entry has the task's cycles."""
    cycles = task.depth.cycles if task.depth is not None else None
    [ids] = generate_all(load(path, cycles=cycles), [msgspec.structs.replace(task, depth=None)])
    return ids


@pytest.mark.parametrize(
    "options",
    [{}, {"step_tokens": 4}, {"draft_tokens": 0}, {"kv_bytes": 3 * 2**18}, {"quantize": "int8"}],
    ids=["drafts", "cut between layers", "no drafts", "few pages", "int8"],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_batch_has_requests_of_all_depths(
    tiny: Path, options: dict[str, object], temperature: float
) -> None:
    sampling = Sampling(max_tokens=12, seed=3, temperature=temperature)
    tasks: list[Generate] = []
    for cycles in CYCLES:
        for prompt in PROMPTS[:2]:
            tasks.append(at(Generate(prompt, sampling), cycles))

    answers = generate_all(load(tiny, **options), tasks)

    if options.get("quantize") == "int8":
        expected = [generate_all(load(tiny, **options), [task])[0] for task in tasks]
    else:
        expected = [alone(tiny, task) for task in tasks]
    assert answers == expected
    assert len({tuple(ids) for ids in answers}) > len(PROMPTS[:2]), "depth changes no answer"


def test_scores_and_prompts_that_are_read(tiny: Path) -> None:
    tails = ("4", "four, I think")
    runner = load(tiny)
    shallow = Depth(cycles="2x1")
    entry = load(tiny, cycles="2x1")

    scores = score_all(
        runner,
        [
            Score("What is 2 + 2?", tails),
            Score("What is 2 + 2?", tails, depth=shallow),
            Score("", ("a longer text " * 30,), rolling=True, depth=shallow),
        ],
    )
    own, other, rolling = scores
    assert [own] == score_all(load(tiny), [Score("What is 2 + 2?", tails)])
    assert [other] == score_all(entry, [Score("What is 2 + 2?", tails)])
    assert [rolling] == score_all(entry, [Score("", ("a longer text " * 30,), rolling=True)])
    assert own != other

    def read(runner: PagedRunner, depth: Depth | None) -> object:
        (emission,) = run(runner, [Read("abcdef", depth=depth)], [()])
        return emission.logprobs

    assert read(runner, shallow) == read(entry, None)


def test_no_keys_are_shared_between_depths(tiny: Path) -> None:
    """A prompt that was computed at a depth is found again at this depth alone."""
    serving = Serving(load(tiny))
    task = Generate(PROMPTS[0], GREEDY)
    for cycles in ("2x1", "2x1", "2x2", None, "2x3"):
        serving.finish([at(task, cycles)])

    cached = [done.num_cached_tokens > 0 for done in serving.done]
    # 2x3 is the network's own depth.
    assert cached == [False, True, False, False, True]
    assert serving.said[3] == serving.said[4] == alone(tiny, task)
    assert serving.said[0] == serving.said[1] == alone(tiny, at(task, "2x1"))


def test_the_answer_tells_the_depth(tiny: Path) -> None:
    serving = Serving(load(tiny))
    task = Generate(PROMPTS[0], GREEDY)
    asked = (None, Depth(cycles="2x3"), Depth(effort="low"), Depth(effort="medium"))
    for depth in (*asked, Depth(effort="high")):
        serving.finish([msgspec.structs.replace(task, depth=depth)])

    first, *told = [done.depth for done in serving.done]
    assert first is None
    assert told == [Depth(cycles=text) for text in ("2x3", "2x1", "2x2", "2x3")]
    assert serving.said[2] == alone(tiny, at(task, "2x1"))
    assert serving.said[4] == serving.said[0]


def test_an_entry_may_say_what_the_efforts_are(tiny: Path) -> None:
    runner = load(tiny, efforts="low=1x2, medium=2x1, high=1x7")
    task = Generate(PROMPTS[0], GREEDY, depth=Depth(effort="high"))
    assert generate_all(runner, [task]) == [alone(tiny, at(task, "1x7"))]
    assert runner.encode(task).asked_depth == Depth(cycles="1x7")


@pytest.mark.parametrize(
    "efforts",
    ["low=2x1", "low=1x1,medium=2x2,high=9", "low=,medium=,high=", "low=1,medium=2,high=3,top=4"],
)
def test_efforts_are_three(efforts: str) -> None:
    with pytest.raises(OptionError, match=r"'efforts': expected low=2x1,medium=2x2,high=2x3"):
        validated(HrmTextOptions, {"efforts": efforts})
    with pytest.raises(OptionError, match=r"'efforts': expected low=2,medium=8,high=16"):
        validated(PuzzleOptions, {"efforts": efforts})


def test_efforts_that_do_not_fit_are_refused_at_load(tiny: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"efforts: .*3x3 are 12 passes"):
        load(tiny, efforts="low=2x1,medium=2x2,high=3x3")


@pytest.mark.parametrize(
    ("depth", "field", "complaint"),
    [
        (Depth(cycles="3x2"), "cycles", r"3x2 are 9 passes .* runs 2x3, which are 8"),
        (Depth(cycles="1x8"), "cycles", r"1x8 are 9 passes"),
        (Depth(max_steps=2), "max_steps", "this model has H and L cycles"),
    ],
)
def test_what_is_too_deep_is_refused(tiny: Path, depth: Depth, field: str, complaint: str) -> None:
    runner = load(tiny)
    with pytest.raises(InvalidRequest, match=complaint) as caught:
        runner.encode(Generate("ab", GREEDY, depth=depth))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("depth", "field"),
    [
        (Depth(cycles="1x1"), "cycles"),
        (Depth(max_steps=1), "max_steps"),
        (Depth(effort="low"), "effort"),
    ],
)
@pytest.mark.parametrize("kind", [Generate, Score, Read])
def test_a_model_of_one_depth_has_no_other(
    tmp_path: Path, kind: type[Task], depth: Depth, field: str
) -> None:
    tiny_causal.write(tiny_causal.llama, tmp_path)
    runner = load_runner("auto", options_for(tmp_path, max_batch=2))
    tasks: dict[type, Task] = {
        Generate: Generate("ab", GREEDY, depth=depth),
        Score: Score("ab", ("c",), depth=depth),
        Read: Read("ab", depth=depth),
    }
    with pytest.raises(InvalidRequest, match="this model has one depth") as caught:
        check_depth(tasks[kind], runner.encode(tasks[kind]))
    assert caught.value.field == field
    plain = msgspec.structs.replace(tasks[kind], depth=None)
    check_depth(plain, runner.encode(plain))


def brain_of(path: Path, *, causal: bool) -> Path:
    net = Net(vocab=264, max_seq_len=64, halt_max_steps=4, causal=causal)
    byte_tokenizer().save_pretrained(path / "tokenizer")
    write_bundle(path, net, tokenizer="tokenizer")
    return path


@pytest.mark.parametrize("causal", [False, True])
def test_brains_run_fewer_segments(tmp_path: Path, causal: bool) -> None:
    """Rows of one batch run 1 to 4 segments. The oracle runs one row alone, without any cache."""
    path = brain_of(tmp_path, causal=causal)
    options = {"max_batch": 4, "page_size": 4, "segments": "max"}
    runner = load_runner("auto", options_for(path, **options))
    depths = [Depth(max_steps=count) for count in (1, 2, 3, 4)]
    depths += [Depth(effort="low"), Depth(effort="medium"), Depth(effort="high")]
    tasks = [Generate("Once upon", GREEDY, depth=depth) for depth in depths]

    answers = generate_all(runner, tasks)

    expected = [greedy_row(runner, tasks[0], segments) for segments in (1, 2, 3, 4)]
    assert answers == [*expected, expected[0], expected[1], expected[3]]
    assert len({tuple(ids) for ids in expected}) > 1, "segments change no answer"
    told = [runner.encode(task).asked_depth for task in tasks]
    assert told == [Depth(max_steps=count) for count in (1, 2, 3, 4, 1, 2, 4)]


@torch.no_grad()
def greedy_row(runner: Runner, task: Generate, segments: int) -> list[int]:
    """Return the greedy answer of a row that is computed anew for each token."""
    if isinstance(runner, ActRunner):
        model = runner.model
    else:
        assert isinstance(runner, PagedRunner)
        assert isinstance(runner.net, ActCausalNet)
        model = runner.net.model
    prompt = runner.encode(task).prompt_ids
    ids = list(prompt)
    while len(ids) < len(prompt) + task.sampling.max_tokens:
        carry = model.initial_carry(1, len(ids))
        for _ in range(segments):
            out = model.forward_segment(torch.tensor([ids]), torch.tensor([len(ids)]), carry)
            carry = out.carry
        ids.append(int(model.logits(out.hidden)[0, -1].argmax()))
        if ids[-1] in runner.eos_ids:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("causal", [False, True])
def test_a_brain_has_no_cycles_and_no_more_segments(tmp_path: Path, causal: bool) -> None:
    runner = load_runner("auto", options_for(brain_of(tmp_path, causal=causal), segments="max"))
    for depth, complaint in (
        (Depth(cycles="1x1"), "this model has ACT segments; expected `max_steps`"),
        (Depth(max_steps=5), "max_steps: expected 1 to 4, got 5"),
        (Depth(max_steps=0), "max_steps: expected 1 to 4, got 0"),
    ):
        with pytest.raises(InvalidRequest, match=complaint):
            runner.encode(Generate("ab", GREEDY, depth=depth))
