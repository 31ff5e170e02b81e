"""Causal ACTv1 brains over pages against one plain row at a time without any cache, whatever the
schedule."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from scripts.train.train_sample import byte_tokenizer
from shared.messages import Generate, Sampling, Score, Scored
from tests.fixtures.worker.act_fixtures import Net, write_bundle
from tests.fixtures.worker.act_reference import Weights, reference
from tests.fixtures.worker.options import options_for
from tests.fixtures.worker.stepping import Serving, end_of, generate_all, run
from worker.engine.noise import fold
from worker.engine.runner import RunnerOptions
from worker.engine.scheduler import Scheduler
from worker.models.act_bundle import load_act_bundle
from worker.models.errors import ModelFormatError
from worker.models.hrm_act import ActModel
from worker.runners.hrm_act import ActRunner
from worker.runners.hrm_act_causal import ActCausalNet
from worker.runners.paged import PagedRunner
from worker.runners.registry import load_runner

PAGE = 4
COUNT = 8
SEGMENTS = 3
PROMPTS = (
    (11, 40, 200, 17, 90),
    (12,),
    (13, *range(50, 90, 3)),
    (11, 40, 200, 17, 91, 7, 8, 9, 30),
)
TASKS = [
    Generate(prompt, Sampling(max_tokens=COUNT, seed=0, temperature=0.0)) for prompt in PROMPTS
]
SHARED = {
    "vocab": 264,
    "max_seq_len": 40,
    "halt_max_steps": SEGMENTS,
    "h_cycles": 2,
    "causal": True,
}
NETS = {
    "rope": Net(**SHARED),
    "learned": Net(**SHARED, learned=True),
    "moe": Net(**SHARED, experts=4),
    "window": Net(**SHARED, window=3),
    "both": Net(**SHARED, experts=3, learned=True, window=5),
}  # type: ignore[arg-type]
MODES = ("compat", "max", "q_halt")
CASES = [
    ("rope", "max"),
    ("rope", "q_halt"),
    ("learned", "max"),
    ("moe", "q_halt"),
    ("window", "compat"),
    ("both", "q_halt"),
]


class Brain:
    """A bundle, its weights, and the same network without any cache, `q_halt` telling its prompts
    apart."""

    def __init__(self, path: Path, net: Net) -> None:
        self.path = path
        self.net = net
        byte_tokenizer().save_pretrained(path / "tokenizer")
        self.weights: Weights = write_bundle(path, net, tokenizer="tokenizer")
        self.plain: ActModel = load_act_bundle(path).model
        gaps = sorted(
            max(halt - go for halt, go in self.halting(prompt, 1)) for prompt in PROMPTS[:3]
        )
        self.weights["inner.q_head.bias"][0] -= (gaps[0] + gaps[1]) / 2
        write_bundle(path, net, tokenizer="tokenizer", weights=self.weights)
        self.plain = load_act_bundle(path).model

    def load(self, segments: str, **changes: object) -> PagedRunner:
        options = {"max_batch": 4, "page_size": PAGE, "segments": segments, **changes}
        runner = load_runner("auto", options_for(self.path, **options))
        assert isinstance(runner, PagedRunner)
        return runner

    def halting(self, ids: Sequence[int], segments: int) -> list[tuple[float, float]]:
        """(q_halt, q_continue) of each segment of a row."""
        return [
            (float(q_halt), float(q_continue))
            for _, q_halt, q_continue in self._segments(ids, segments)
        ]

    def depth(self, mode: str, ids: Sequence[int]) -> int:
        if mode != "q_halt":
            return 1 if mode == "compat" else SEGMENTS
        halted = (
            number for number, (halt, go) in enumerate(self.halting(ids, SEGMENTS), 1) if halt > go
        )
        return next(halted, SEGMENTS)

    def logits(self, mode: str, ids: Sequence[int]) -> torch.Tensor:
        """[tokens, vocab] of a row by itself, all of it computed anew."""
        states = self._segments(ids, self.depth(mode, ids))[-1][0]
        return self.plain.logits(states)[0]

    def check(self, mode: str, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Greedy: each token of an answer is the likeliest one behind what came before it."""
        logits = self.logits(mode, [*prompt, *answer])
        likeliest = logits[len(prompt) - 1 : -1].argmax(-1).tolist()
        assert answer == likeliest and (len(answer) == COUNT or answer[-1] == 3)

    def _segments(
        self, ids: Sequence[int], count: int
    ) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        row = torch.tensor([list(ids)])
        length = torch.tensor([len(ids)])
        carry = self.plain.initial_carry(1, len(ids))
        found = []
        with torch.no_grad():
            for _ in range(count):
                out = self.plain.forward_segment(row, length, carry)
                carry = out.carry
                found.append((out.hidden, out.q_halt, out.q_continue))
        return found


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Brain, str]:
    name, mode = request.param
    return Brain(tmp_path_factory.mktemp("brain"), NETS[name]), mode


@pytest.fixture
def brain(case: tuple[Brain, str]) -> Brain:
    return case[0]


@pytest.fixture
def mode(case: tuple[Brain, str]) -> str:
    return case[1]


def check_all(brain: Brain, mode: str, answers: list[list[int]]) -> None:
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        brain.check(mode, prompt, answer)


def test_prompts_halt_at_different_segments(brain: Brain) -> None:
    """Guards what follows: under `q_halt` rows of one batch need different numbers of segments."""
    depths = [brain.depth("q_halt", prompt) for prompt in PROMPTS]
    assert len(set(depths)) > 1
    assert depths[0] == depths[3], "a row's depth is its first token's"


def test_equals_the_reference(brain: Brain, mode: str) -> None:
    """X16: states over pages, prompt and answer, are those of the formulas written out one query at
    a time."""
    prompt = PROMPTS[0]
    answer = generate_all(brain.load(mode, step_tokens=3), [TASKS[0]])[0]
    logits, _ = reference(brain.weights, brain.net, [*prompt, *answer], brain.depth(mode, prompt))
    assert answer == logits[len(prompt) - 1 : -1].argmax(-1).tolist()


def test_greedy_batch_equals_plain_rows(brain: Brain, mode: str) -> None:
    """T3, T5: rows of unequal lengths and depths decoded together."""
    check_all(brain, mode, generate_all(brain.load(mode), TASKS))


def test_prompts_in_parts_and_staggered(brain: Brain, mode: str) -> None:
    """Chunked prefill beside rows that decode; a late row joins, an early one leaves."""
    serving = Serving(brain.load(mode, step_tokens=3, max_batch=2))
    for task in TASKS:
        serving.submit(task)
        serving.engine.step()
        serving.engine.step()
    serving.finish()
    check_all(brain, mode, serving.said)


def test_prefix_hits(brain: Brain, mode: str) -> None:
    """A prompt that begins as an earlier one finds its pages, of every segment."""
    for is_on in (True, False):
        serving = Serving(brain.load(mode, prefix_cache=is_on))
        for task in TASKS:
            serving.finish([task])
        check_all(brain, mode, serving.said)
        assert [done.num_cached_tokens for done in serving.done] == [0, 0, 0, PAGE if is_on else 0]


def test_few_pages(brain: Brain, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that gave their pages back are computed again and go on with the same tokens."""
    preempted: list[object] = []
    real = Scheduler._preempt
    monkeypatch.setattr(
        Scheduler, "_preempt", lambda self, item: (preempted.append(item), real(self, item))
    )
    per_token = brain.load(mode)._net.kv_shape.bytes_per_token(torch.float32)
    runner = brain.load(mode, context_window=24, page_size=2, kv_bytes=12 * 2 * per_token)
    order = (0, 1, 3, 2)
    answers = generate_all(runner, [TASKS[number] for number in order])
    check_all(brain, mode, [answers[number] for number in order])
    assert preempted, "there was room for all: this proves nothing"


def test_a_replayed_response_goes_on_as_if_never_cut(brain: Brain, mode: str) -> None:
    """After a takeover the logged tokens are run with the prompt, and not sampled again."""
    whole = generate_all(brain.load(mode), TASKS)
    replayed = [answer[:kept] for answer, kept in zip(whole, (1, 5, 3, 7), strict=True)]
    assert generate_all(brain.load(mode, step_tokens=5), TASKS, replayed) == whole


def test_choices_equal_requests_of_their_own(brain: Brain, mode: str) -> None:
    """n choices share one prompt's pages; each says what a request with its seed says."""

    def sampling(seed: int, n: int) -> Sampling:
        return Sampling(max_tokens=5, seed=seed, temperature=1.0, n=n)

    emissions = run(brain.load(mode), [Generate(PROMPTS[0], sampling(7, 3))], [[]])
    said = [
        [token for item in emissions if item.choice == choice for token in item.ids]
        for choice in range(3)
    ]
    singles = [Generate(PROMPTS[0], sampling(fold(7, choice), 1)) for choice in range(3)]
    assert said == [generate_all(brain.load(mode), [single])[0] for single in singles]


def test_scores_equal_the_plain_row(brain: Brain, mode: str) -> None:
    """A35: one causal pass gives what generation samples from, whichever method asks for it."""
    serving = Serving(brain.load(mode, step_tokens=6))
    contexts = ((11, 40, 200, 12), (12, 9, 13), (13, 7, 7, 7, 7, 11))
    continuations = ((9, 60, 200, 41, 5), (77,), (200, 9))
    ends = [
        (brain.depth("q_halt", context), brain.depth("q_halt", context[-1:]))
        for context in contexts
    ]
    assert any(first != last for first, last in ends), (
        "taking the last token for the first would not show"
    )
    tasks = [
        Score(context, continuations, method=method)
        for context in contexts
        for method in ("strict", "aios_compat")
    ]  # type: ignore[arg-type]
    serving.finish(tasks)
    for task, done in zip(tasks, serving.done, strict=True):
        assert isinstance(task.context, tuple)
        for tail, score in zip(continuations, end_of(done, Scored).scores, strict=True):
            table = brain.logits(mode, [*task.context, *tail]).double().log_softmax(-1)
            expected = sum(
                float(table[len(task.context) - 1 + at, token]) for at, token in enumerate(tail)
            )
            assert score.log_likelihood == pytest.approx(expected, abs=1e-4)


def test_keys_and_values_are_kept_for_every_pass(brain: Brain) -> None:
    """T7 for ACTv1: segments x H cycles x (L cycles x L layers + H layers) slots."""
    per_segment = 2 * (2 * 1 + 2)
    slots = {mode: brain.load(mode)._net.kv_shape.num_slots for mode in MODES}
    assert slots == {
        "compat": per_segment,
        "max": SEGMENTS * per_segment,
        "q_halt": SEGMENTS * per_segment,
    }


def test_only_causal_brains_keep_keys_and_values(tmp_path: Path) -> None:
    """X18: a bidirectional brain never does, a setting can make either of the same weights."""
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    write_bundle(tmp_path, Net(vocab=264), tokenizer="tokenizer")
    plain = load_runner("auto", RunnerOptions(path=str(tmp_path)))
    assert isinstance(plain, ActRunner) and plain.spec.num_pages == 0 and plain.spec.reuse == "none"
    causal = load_runner("auto", options_for(tmp_path, attention="causal"))
    assert isinstance(causal, PagedRunner) and isinstance(causal._net, ActCausalNet)
    assert (causal.spec.runner, causal.spec.reuse, causal.spec.chunk_prefill) == (
        "hrm-act",
        "prefix",
        True,
    )
    assert "causal" in causal.spec.found
    with pytest.raises(ModelFormatError, match="kv_memory_mib"):
        load_runner("auto", options_for(tmp_path, attention="causal", kv_bytes=100))
