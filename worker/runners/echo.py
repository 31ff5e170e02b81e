"""A model-free runner: says the prompt's words again, and scores by length. The whole fleet runs on
it without torch.

Tokens are characters (code points). The answer repeats the prompt until it is told to stop, so any
length can be had; a prompt that contains the word `eos` ends where the prompt does.
"""

from collections.abc import Sequence

from shared.errors import FleetError
from shared.messages import (
    Chat,
    Classify,
    ContinuationScore,
    Embed,
    Generate,
    Label,
    Prompt,
    Read,
    Score,
    Task,
    Tokenize,
    TokenLogprob,
)
from worker.answers import detokenized, tokenized
from worker.rolling import encode_rolling
from worker.runners.base import (
    TEXT_TASKS,
    RunnerOptions,
    RunnerSpec,
    as_ids,
    encode_generate,
    encode_read,
    encode_score,
    encode_text,
    text_task,
)
from worker.sequence import (
    Classified,
    Encoded,
    EncodedText,
    Pooled,
    Sampled,
    Scores,
    Slice,
    StepResult,
    TokenSequence,
)

EOS = 0
HIDDEN = 8
_VOCABULARY = 0x110000
_SURROGATES = range(0xD800, 0xE000)  # code points that are no characters
_LOG_LIKELIHOOD_PER_TOKEN = -1.0


class Echo:
    """Deterministic whatever the seed: token i of the answer is character i of the prompt, over and
    over.

    It is certain of each of them, and ends nothing before `min_tokens`. A vector tells how often
    characters occur, labels how many of them are letters, digits and others.
    """

    eos_ids = frozenset({EOS})

    def __init__(self, options: RunnerOptions) -> None:
        window = options.context_window or 4096
        found = "echo: repeats its prompt, no model"
        self.spec = RunnerSpec(
            "echo", options.name, found, window, options.max_batch, tasks=(*TEXT_TASKS, "classify")
        )

    def encode(self, task: Task) -> Encoded:
        if isinstance(task, Classify):
            return encode_text(_ids(task.text, "input"), task, self.spec.context_window)
        task = text_task(task)
        if isinstance(task, Generate):
            return encode_generate(
                _ids(task.prompt, "prompt"), task, self.spec.context_window, vocab_size=_VOCABULARY
            )
        if isinstance(task, Read):
            return encode_read(_ids(task.prompt, "prompt"), 1, task, self.spec.context_window)
        if isinstance(task, Score):
            return self._encode_score(task)
        if isinstance(task, Embed):
            return encode_text(_ids(task.text, "input"), task, self.spec.context_window)
        if isinstance(task, Tokenize):
            ids = _ids(task.prompt, "prompt")
            return tokenized(
                ids, [self.decode([token]) for token in ids] if task.with_texts else ()
            )
        ids = _ids(task.ids, "tokens")
        return detokenized(ids, self.decode(ids))

    def _encode_score(self, task: Score) -> Encoded:
        if task.rolling:
            return encode_rolling(
                (EOS,), _ids(task.continuations[0], "prompts"), self.spec.context_window
            )
        continuations = [_ids(item, "continuations") for item in task.continuations]
        context = _ids(task.context, "prompts") or (EOS,)
        return encode_score(context, continuations, self.spec.context_window)

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        return [_answer(part) for part in slices]

    def release(self, sequence: TokenSequence) -> None:
        return

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(
            "\ufffd" if token in _SURROGATES else chr(token) for token in token_ids if token != EOS
        )


def _answer(part: Slice) -> StepResult:
    encoded = part.sequence.encoded
    if encoded.is_pooled:
        return _pool(encoded.prompt_ids)
    if isinstance(encoded, EncodedText):
        return _label(encoded)
    return _score(part) if part.sequence.is_scoring else _say(part.sequence)


def _ids(prompt: Prompt, field: str) -> tuple[int, ...]:
    """Of a dialogue the words, a line a turn."""
    text = (
        "\n".join(turn.content for turn in prompt.messages) if isinstance(prompt, Chat) else prompt
    )
    given = as_ids(text, _VOCABULARY, field)
    return given if given is not None else tuple(map(ord, str(text)))


def _say(sequence: TokenSequence) -> Sampled:
    sampling, token = sequence.sampling, _next(sequence)
    if sampling is None or sampling.logprobs is None:
        return Sampled(token)
    return Sampled(token, TokenLogprob(0.0, top=((token, "", 0.0),) if sampling.logprobs else ()))


def _next(sequence: TokenSequence) -> int:
    prompt, spoken = sequence.encoded.prompt_ids, len(sequence.output_ids)
    may_end = sequence.sampling is not None and spoken >= sequence.sampling.min_tokens
    if may_end and spoken >= len(prompt) and "eos" in "".join(map(chr, prompt)):
        return EOS
    return prompt[spoken % len(prompt)]


def _pool(ids: Sequence[int]) -> Pooled:
    """A token's state is a one among zeros, at its id modulo the number of units."""
    return Pooled(
        [float(sum(token % HIDDEN == unit for token in ids)) for unit in range(HIDDEN)], len(ids)
    )


def _label(text: EncodedText) -> Classified:
    characters = list(map(chr, text.prompt_ids))
    stats = {
        "letters": sum(map(str.isalpha, characters)),
        "digits": sum(map(str.isdigit, characters)),
    }
    stats["others"] = len(characters) - sum(stats.values())
    labels = [Label(name, count / len(characters)) for name, count in stats.items()]
    return Classified(tuple(sorted(labels, key=lambda label: -label.score)[: text.top_k]))


def _score(part: Slice) -> Scores:
    lengths = [len(item) for item in part.continuations]
    scores = tuple(ContinuationScore(_LOG_LIKELIHOOD_PER_TOKEN * n, n, False) for n in lengths)
    is_told = part.sequence.encoded.is_reading
    return Scores(
        scores, (TokenLogprob(_LOG_LIKELIHOOD_PER_TOKEN),) * sum(lengths) if is_told else ()
    )
