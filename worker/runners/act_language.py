"""The language of ACTv1 brains: an ordinary tokenizer.

Its special tokens belong to prompts and not to continuations.
"""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from shared.errors import InvalidRequest
from shared.messages import Detokenize, Embed, Generate, Read, Score, Text, Tokenize
from worker.engine.sequence import Encoded
from worker.models.weights import start_ids
from worker.text.encoding import TextTask, encode_generate, encode_read, encode_score, known_ids
from worker.text.rolling import Ids
from worker.text.vocabulary import Vocabulary


class ActLanguage:
    """Text of ACTv1 brains.

    `scoring` is the method for requests that name none. The method `aios_compat` uses no special
    tokens. `encode_whole(start_ids, text_ids, window)` cuts a whole text into windows that the
    network can score.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: Vocabulary,
        scoring: str,
        encode_whole: Callable[[Ids, Ids, int], Encoded],
    ) -> None:
        eos_ids = []
        if tokenizer.eos_token_id is not None:
            eos_ids.append(int(tokenizer.eos_token_id))
        self.eos_ids = known_ids(eos_ids, vocabulary.size)
        self._vocabulary = vocabulary
        self._scoring = scoring
        self._encode_whole = encode_whole
        self._start = start_ids(tokenizer)

    def encode(self, task: TextTask, window: int) -> Encoded:
        vocabulary = self._vocabulary
        if isinstance(task, Tokenize | Detokenize | Embed):
            return vocabulary.encode(task, window)
        if task.condition is not None:
            raise InvalidRequest(
                "This model knows no conditions; leave `condition` out.", field="condition"
            )
        if isinstance(task, Generate):
            ids = vocabulary.prompt(task.prompt, "prompt")
            return encode_generate(ids, task, window, vocab_size=vocabulary.size)
        if isinstance(task, Read):
            ids = vocabulary.prompt(task.prompt, "prompt")
            return encode_read(ids, num_seen=1, task=task, window=window)
        return self._encode_score(task, window)

    def _encode_score(self, task: Score, window: int) -> Encoded:
        method = task.method or self._scoring
        if task.rolling:
            text = self._ids(task.continuations[0], "prompts", special=False)
            return self._encode_rolling(text, window, method)

        is_strict = method == "strict"
        context = self._ids(task.context, "prompts", special=is_strict)
        if is_strict and not context:
            context = self._vocabulary.known(self._start, "prompts")
        continuations = [
            self._ids(text, "continuations", special=False) for text in task.continuations
        ]
        return encode_score(context, continuations, window, method=method)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._vocabulary.decode(token_ids)

    def _encode_rolling(self, text: Ids, window: int, method: str) -> Encoded:
        """Return the task of scoring each token of a text once.

        With `aios_compat` it is one pass over the text's end, as upstream scores.
        """
        if method == "strict":
            start = self._vocabulary.known(self._start, "prompts")
            return self._encode_whole(start, text, window)
        if len(text) < 2:
            raise InvalidRequest(
                "`aios_compat` never scores a text's first token: two are expected.",
                field="prompts",
            )
        kept = text[-window:]
        num_truncated = len(text) - len(kept)
        return Encoded(
            kept[:1], continuations=(kept[1:],), method=method, num_truncated=num_truncated
        )

    def _ids(self, text: Text, field: str, *, special: bool) -> tuple[int, ...]:
        return self._vocabulary.ids(text, field, special=special)
