"""A model-free runner that repeats the prompt, and scores by length.

The whole fleet runs on it without torch. Tokens are characters (code points). The answer repeats
the prompt until a limit or a stop string ends it. If the prompt contains the word `eos`, the answer
ends after one repetition.
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
    Text,
    Tokenize,
    TokenLogprob,
)
from shared.tasks.runner_table import TEXT_TASKS
from worker.engine.runner import RunnerOptions, RunnerSpec
from worker.engine.sequence import (
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
from worker.text.answers import detokenized, tokenized
from worker.text.encoding import (
    as_ids,
    encode_generate,
    encode_read,
    encode_score,
    encode_text,
    text_of,
    text_task,
)
from worker.text.rolling import encode_rolling

EOS = 0
HIDDEN = 8
_VOCABULARY = 0x110000
_SURROGATES = range(0xD800, 0xE000)  # code points that are no characters
_LOG_LIKELIHOOD_PER_TOKEN = -1.0


class Echo:
    """A runner whose answers repeat the prompt's characters, whatever the seed.

    Each character has probability 1, and none ends the answer before `min_tokens`. A vector counts
    how often characters occur. Labels are the shares of letters, digits and other characters.
    """

    eos_ids = frozenset({EOS})

    def __init__(self, options: RunnerOptions) -> None:
        self.spec = RunnerSpec(
            "echo",
            options.name,
            found="echo: repeats its prompt, no model",
            context_window=options.context_window or 4096,
            max_batch=options.max_batch,
            tasks=(*TEXT_TASKS, "classify"),
        )

    def encode(self, task: Task) -> Encoded:
        window = self.spec.context_window
        if isinstance(task, Classify):
            return encode_text(_ids(task.text, "input"), task, window)
        task = text_task(task)
        if isinstance(task, Generate):
            ids = _ids(task.prompt, "prompt")
            return encode_generate(ids, task, window, vocab_size=_VOCABULARY)
        if isinstance(task, Read):
            ids = _ids(task.prompt, "prompt")
            return encode_read(ids, num_seen=1, task=task, window=window)
        if isinstance(task, Score):
            return self._encode_score(task)
        if isinstance(task, Embed):
            return encode_text(_ids(task.text, "input"), task, window)
        if isinstance(task, Tokenize):
            ids = _ids(task.prompt, "prompt")
            if not task.with_texts:
                return tokenized(ids, ())
            return tokenized(ids, [self.decode([token]) for token in ids])
        ids = _ids(task.ids, "tokens")
        return detokenized(ids, self.decode(ids))

    def _encode_score(self, task: Score) -> Encoded:
        window = self.spec.context_window
        if task.rolling:
            return encode_rolling((EOS,), _ids(task.continuations[0], "prompts"), window)
        continuations = [_ids(text, "continuations") for text in task.continuations]
        context = _ids(task.context, "prompts") or (EOS,)
        return encode_score(context, continuations, window)

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        return [_answer(part) for part in slices]

    def release(self, sequence: TokenSequence) -> None:
        return

    def decode(self, token_ids: Sequence[int]) -> str:
        characters = []
        for token in token_ids:
            if token in _SURROGATES:
                characters.append("\ufffd")
            elif token != EOS:
                characters.append(chr(token))
        return "".join(characters)


def _answer(part: Slice) -> StepResult:
    encoded = part.sequence.encoded
    if encoded.is_pooled:
        return _pool(encoded.prompt_ids)
    if isinstance(encoded, EncodedText):
        return _label(encoded)
    if part.sequence.is_scoring:
        return _score(part)
    return _sample(part.sequence)


def _ids(prompt: Prompt, field: str) -> tuple[int, ...]:
    """Return the tokens of a prompt. A dialogue is the text of its turns, each on its own line."""
    if isinstance(prompt, Chat):
        text: Text = "\n".join(text_of(turn) for turn in prompt.messages)
    else:
        text = prompt
    ids = as_ids(text, _VOCABULARY, field)
    if ids is not None:
        return ids
    return tuple(ord(character) for character in str(text))


def _sample(sequence: TokenSequence) -> Sampled:
    sampling = sequence.sampling
    token = _next(sequence)
    if sampling is None or sampling.logprobs is None:
        return Sampled(token)
    top = ((token, "", 0.0),) if sampling.logprobs else ()
    return Sampled(token, TokenLogprob(0.0, top=top))


def _next(sequence: TokenSequence) -> int:
    prompt = sequence.encoded.prompt_ids
    num_output = len(sequence.output_ids)
    may_end = sequence.sampling is not None and num_output >= sequence.sampling.min_tokens
    if may_end and num_output >= len(prompt):
        text = "".join(chr(token) for token in prompt)
        if "eos" in text:
            return EOS
    return prompt[num_output % len(prompt)]


def _pool(ids: Sequence[int]) -> Pooled:
    """Return the sum of the tokens' states.

    A state is a one among zeros, at the token's id modulo HIDDEN.
    """
    sums = [0.0] * HIDDEN
    for token in ids:
        sums[token % HIDDEN] += 1.0
    return Pooled(sums, len(ids))


def _label(text: EncodedText) -> Classified:
    num_letters = 0
    num_digits = 0
    for token in text.prompt_ids:
        character = chr(token)
        num_letters += character.isalpha()
        num_digits += character.isdigit()
    count = len(text.prompt_ids)
    num_others = count - num_letters - num_digits
    labels = [
        Label("letters", num_letters / count),
        Label("digits", num_digits / count),
        Label("others", num_others / count),
    ]
    labels.sort(key=lambda label: -label.score)
    return Classified(tuple(labels[: text.top_k]))


def _score(part: Slice) -> Scores:
    scores = []
    num_tokens = 0
    for continuation in part.continuations:
        length = len(continuation)
        scores.append(
            ContinuationScore(_LOG_LIKELIHOOD_PER_TOKEN * length, length, is_greedy=False)
        )
        num_tokens += length

    token_scores: tuple[TokenLogprob, ...] = ()
    if part.sequence.encoded.is_reading:
        token_scores = (TokenLogprob(_LOG_LIKELIHOOD_PER_TOKEN),) * num_tokens
    return Scores(tuple(scores), token_scores)
