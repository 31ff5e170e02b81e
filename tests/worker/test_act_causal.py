"""Causal ACTv1 brains over pages equal one plain row at a time without any cache.

This holds whatever the schedule.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch

from scripts.train.special_tokens import byte_tokenizer
from shared.messages import Generate, Sampling, Score, Scored
from tests.fixtures.worker.act_fixtures import Net, write_bundle
from tests.fixtures.worker.act_reference import Weights, reference
from tests.fixtures.worker.options import options_for
from tests.fixtures.worker.stepping import Serving, end_of, generate_all, run
from worker.engine.noise import fold
from worker.engine.runner import RunnerOptions
from worker.models.act_bundle import load_act_bundle
from worker.models.errors import ModelFormatError
from worker.models.hrm_act import ActModel
from worker.runners.hrm_act import ActRunner
from worker.runners.hrm_act_causal import ActCausalNet
from worker.runners.paged import PagedRunner
from worker.runners.registry import load_runner

PAGE = 4
COUNT = 8
EOS = 3
SEGMENTS = 3
# The last prompt begins with the first page of the first one.
PROMPTS = (
    (11, 40, 200, 17, 90),
    (12,),
    (13, *range(50, 90, 3)),
    (11, 40, 200, 17, 91, 7, 8, 9, 30),
)
GREEDY = Sampling(max_tokens=COUNT, seed=0, temperature=0.0)
TASKS = [Generate(prompt, GREEDY) for prompt in PROMPTS]
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
CASES = [
    ("rope", "max"),
    ("rope", "q_halt"),
    ("learned", "max"),
    ("moe", "q_halt"),
    ("window", "compat"),
    ("both", "q_halt"),
]


class Brain:
    """A bundle, its weights, and the same network without any cache.

    The bias of its halting head is set such that the prompts halt at different segments.
    """

    def __init__(self, path: Path, net: Net) -> None:
        self.path = path
        self.net = net
        byte_tokenizer().save_pretrained(path / "tokenizer")
        self.weights: Weights = write_bundle(path, net, tokenizer="tokenizer")
        self.plain: ActModel = load_act_bundle(path).model

        gaps: list[float] = []
        for prompt in PROMPTS[:3]:
            [(q_halt, q_continue)] = self.q_values(prompt, 1)
            gaps.append(q_halt - q_continue)
        gaps.sort()

        # Between the two smallest gaps: one of the three prompts does not halt at once.
        self.weights["inner.q_head.bias"][0] -= (gaps[0] + gaps[1]) / 2
        write_bundle(path, net, tokenizer="tokenizer", weights=self.weights)
        self.plain = load_act_bundle(path).model

    def load(self, segments: str, **changes: object) -> PagedRunner:
        options = {"max_batch": 4, "page_size": PAGE, "segments": segments, **changes}
        runner = load_runner("auto", options_for(self.path, **options))
        assert isinstance(runner, PagedRunner)
        return runner

    def q_values(self, ids: Sequence[int], segments: int) -> list[tuple[float, float]]:
        """Return (q_halt, q_continue) of each segment of a row."""
        pairs: list[tuple[float, float]] = []
        for _, q_halt, q_continue in self._segments(ids, segments):
            pairs.append((float(q_halt), float(q_continue)))
        return pairs

    def depth(self, mode: str, ids: Sequence[int]) -> int:
        """Return the number of segments that a row runs for."""
        if mode == "compat":
            return 1
        if mode == "max":
            return SEGMENTS
        for number, (q_halt, q_continue) in enumerate(self.q_values(ids, SEGMENTS), start=1):
            if q_halt > q_continue:
                return number
        return SEGMENTS

    def logits(self, mode: str, ids: Sequence[int]) -> torch.Tensor:
        """Return [tokens, vocab] of a row by itself, all of it computed anew."""
        segments = self._segments(ids, self.depth(mode, ids))
        states, _, _ = segments[-1]
        return self.plain.logits(states)[0]

    def check(self, mode: str, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Check that each token of a greedy answer is the likeliest one after those before it."""
        logits = self.logits(mode, [*prompt, *answer])
        likeliest = logits[len(prompt) - 1 : -1].argmax(-1).tolist()

        assert answer == likeliest
        assert len(answer) == COUNT or answer[-1] == EOS

    def _segments(
        self, ids: Sequence[int], count: int
    ) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Return the states, q_halt and q_continue after each segment."""
        row = torch.tensor([list(ids)])
        length = torch.tensor([len(ids)])
        carry = self.plain.initial_carry(1, len(ids))
        segments = []
        with torch.no_grad():
            for _ in range(count):
                out = self.plain.forward_segment(row, length, carry)
                carry = out.carry
                segments.append((out.hidden, out.q_halt, out.q_continue))
        return segments


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
    """Under `q_halt` rows of one batch need different numbers of segments.

    Without this the other tests would prove nothing about halting.
    """
    depths = [brain.depth("q_halt", prompt) for prompt in PROMPTS]

    assert len(set(depths)) > 1
    assert depths[0] == depths[3], "a row's depth is its first token's"


def test_equals_the_reference(brain: Brain, mode: str) -> None:
    """States over pages, of prompt and answer, are those of the formulas (X16).

    The reference writes the formulas out one query at a time.
    """
    prompt = PROMPTS[0]
    [answer] = generate_all(brain.load(mode, step_tokens=3), [TASKS[0]])

    depth = brain.depth(mode, prompt)
    logits, _ = reference(brain.weights, brain.net, [*prompt, *answer], depth)
    assert answer == logits[len(prompt) - 1 : -1].argmax(-1).tolist()


def test_each_token_tells_where_its_row_stopped(brain: Brain, mode: str) -> None:
    """That is the same segment for all tokens of a row, and the q values are its first token's."""
    runner = brain.load(mode)
    greedy = Sampling(max_tokens=COUNT, seed=0, temperature=0.0, logprobs=0)
    tasks = [msgspec.structs.replace(task, sampling=greedy) for task in TASKS]
    emissions = run(runner, tasks, [[] for _ in tasks])

    for number, prompt in enumerate(PROMPTS):
        depth = brain.depth(mode, prompt)
        expected = pytest.approx(brain.q_values(prompt, depth)[-1], abs=1e-4)
        halts = []
        for emission in emissions:
            if emission.key == str(number):
                halts += [logprob.halt for logprob in emission.logprobs]
        assert halts
        for halt in halts:
            assert halt is not None
            assert (halt.q_halt, halt.q_continue) == expected
            assert halt.segments == depth


def test_greedy_batch_equals_plain_rows(brain: Brain, mode: str) -> None:
    """Rows of unequal lengths and depths are decoded together, each as if alone (T3, T5)."""
    check_all(brain, mode, generate_all(brain.load(mode), TASKS))


def test_prompts_in_parts_and_staggered(brain: Brain, mode: str) -> None:
    """Chunked prefill beside rows that decode changes no answer.

    A late row joins, and an early one leaves.
    """
    serving = Serving(brain.load(mode, step_tokens=3, max_batch=2))
    for task in TASKS:
        serving.submit(task)
        serving.engine.step()
        serving.engine.step()
    serving.finish()

    check_all(brain, mode, serving.said)


def test_prefix_hits(brain: Brain, mode: str) -> None:
    """A prompt that begins as an earlier one finds its pages, of every segment."""
    for prefix_cache, cached in ((True, [0, 0, 0, PAGE]), (False, [0, 0, 0, 0])):
        serving = Serving(brain.load(mode, prefix_cache=prefix_cache))
        for task in TASKS:
            serving.finish([task])

        check_all(brain, mode, serving.said)
        assert [done.num_cached_tokens for done in serving.done] == cached


def test_few_pages(brain: Brain, mode: str) -> None:
    """Rows that gave their pages back are computed again and go on with the same tokens."""
    per_token = brain.load(mode).net.kv_shape.bytes_per_token(torch.float32)
    # Room for 12 pages of 2 tokens: one window of 24 tokens.
    runner = brain.load(mode, context_window=24, page_size=2, kv_bytes=12 * 2 * per_token)
    serving = Serving(runner)
    serving.finish([TASKS[0], TASKS[1], TASKS[3], TASKS[2]])

    first, second, fourth, third = serving.said
    check_all(brain, mode, [first, second, third, fourth])
    assert serving.engine.load.num_preempted > 0, "there was room for all: this proves nothing"


def test_a_replayed_response_goes_on_as_if_never_cut(brain: Brain, mode: str) -> None:
    """After a takeover the logged tokens are run with the prompt, and not sampled again."""
    whole = generate_all(brain.load(mode), TASKS)
    replayed = [whole[0][:1], whole[1][:5], whole[2][:3], whole[3][:7]]

    assert generate_all(brain.load(mode, step_tokens=5), TASKS, replayed) == whole


def sampling(seed: int, *, n: int) -> Sampling:
    return Sampling(max_tokens=5, seed=seed, temperature=1.0, n=n)


def test_choices_equal_requests_of_their_own(brain: Brain, mode: str) -> None:
    """n choices share one prompt's pages; each says what a request with its seed says."""
    emissions = run(brain.load(mode), [Generate(PROMPTS[0], sampling(7, n=3))], [[]])
    choices: list[list[int]] = [[], [], []]
    for emission in emissions:
        choices[emission.choice] += emission.ids

    for index, choice in enumerate(choices):
        single = Generate(PROMPTS[0], sampling(fold(7, index), n=1))
        assert generate_all(brain.load(mode), [single]) == [choice]


def test_scores_equal_the_plain_row(brain: Brain, mode: str) -> None:
    """One causal pass scores what generation samples from, by either method (A35)."""
    serving = Serving(brain.load(mode, step_tokens=6))
    contexts = ((11, 40, 200, 12), (12, 9, 13), (13, 7, 7, 7, 7, 11))
    continuations = ((9, 60, 200, 41, 5), (77,), (200, 9))

    # Otherwise taking the last token for the first would not show.
    assert any(
        brain.depth("q_halt", context) != brain.depth("q_halt", context[-1:])
        for context in contexts
    )

    tasks: list[Score] = []
    for context in contexts:
        tasks.append(Score(context, continuations, method="strict"))
        tasks.append(Score(context, continuations, method="aios_compat"))
    serving.finish(tasks)

    for task, done in zip(tasks, serving.done, strict=True):
        assert isinstance(task.context, tuple)
        scores = end_of(done, Scored).scores
        for continuation, score in zip(continuations, scores, strict=True):
            expected = log_likelihood(brain, mode, task.context, continuation)
            assert score.log_likelihood == pytest.approx(expected, abs=1e-4)


def log_likelihood(
    brain: Brain, mode: str, context: tuple[int, ...], continuation: tuple[int, ...]
) -> float:
    """Return the sum of the continuation's log-probabilities in one plain row."""
    logits = brain.logits(mode, [*context, *continuation])
    log_probs = logits.double().log_softmax(-1)
    total = 0.0
    # The position before a token predicts it.
    for position, token in enumerate(continuation, start=len(context) - 1):
        total += float(log_probs[position, token])
    return total


def test_keys_and_values_are_kept_for_every_pass(brain: Brain) -> None:
    """T7 for ACTv1: segments x H cycles x (L cycles x L layers + H layers) slots."""
    per_segment = 2 * (2 * 1 + 2)
    expected = {
        "compat": per_segment,
        "max": SEGMENTS * per_segment,
        "q_halt": SEGMENTS * per_segment,
    }
    for mode, num_slots in expected.items():
        assert brain.load(mode).net.kv_shape.num_slots == num_slots


def test_only_causal_brains_keep_keys_and_values(tmp_path: Path) -> None:
    """A bidirectional brain keeps none; a setting makes either of the same weights (X18)."""
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    write_bundle(tmp_path, Net(vocab=264), tokenizer="tokenizer")

    plain = load_runner("auto", RunnerOptions(path=str(tmp_path)))
    assert isinstance(plain, ActRunner)
    assert plain.spec.num_pages == 0
    assert plain.spec.reuse == "none"

    causal = load_runner("auto", options_for(tmp_path, attention="causal"))
    assert isinstance(causal, PagedRunner)
    assert isinstance(causal.net, ActCausalNet)
    assert causal.spec.runner == "hrm-act"
    assert causal.spec.reuse == "prefix"
    assert causal.spec.num_layers == 0, "its prompts are cut between tokens"
    assert "causal" in causal.spec.found

    with pytest.raises(ModelFormatError, match="kv_memory_mib"):
        load_runner("auto", options_for(tmp_path, attention="causal", kv_bytes=100))
