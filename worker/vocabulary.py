"""A model's tokenizer with its chat template: texts and dialogues as token ids, and ids as text."""

from collections.abc import Sequence as Rows
from typing import Any

from transformers import PreTrainedTokenizerBase

from shared.messages import Chat, Classify, Detokenize, Embed, Prompt, Text, Tokenize
from worker.answers import detokenized, tokenized
from worker.chat import ChatTemplate
from worker.runners.base import as_ids, encode_text
from worker.sequence import Encoded

Ids = tuple[int, ...]


class Vocabulary:
    """Ids from 0 to `size` - 1. `field` of the methods is the input to blame."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int, template: ChatTemplate) -> None:
        self.size = size
        self._tokenizer = tokenizer
        self._template = template

    def ids(self, text: Text, field: str, *, special: bool, names: bool = True) -> Ids:
        """With the tokenizer's own marks if `special`. Without `names` those of special tokens are plain text."""
        given = as_ids(text, self.size, field)
        if given is not None:
            return given
        how = {} if names else {"split_special_tokens": True}
        encoded: Any = self._tokenizer(text, add_special_tokens=special, **how)
        return tuple(encoded["input_ids"])

    def prompt(self, prompt: Prompt, field: str, *, special: bool = True) -> Ids:
        """A dialogue's template writes the special tokens itself, so that none is there twice."""
        if isinstance(prompt, Chat):
            return self.ids(self._template.write(prompt), "messages", special=False)
        return self.ids(prompt, field, special=special)

    def encode(self, task: Tokenize | Detokenize | Embed | Classify, window: int) -> Encoded:
        """A task that takes a text as it is, or a dialogue as its template says."""
        if isinstance(task, Tokenize):
            return self.tokenized(self.prompt(task.prompt, "prompt", special=task.add_special_tokens), task)
        if isinstance(task, Detokenize):
            return self.detokenized(task)
        ids, num_behind = self._framed(task.text)
        return encode_text(ids, task, window, num_behind=num_behind)

    def _framed(self, text: Text) -> tuple[Ids, int]:
        """Ids with the tokenizer's own marks, and how many of these stand at the end."""
        given = as_ids(text, self.size, "input")
        if given is not None:
            return given, 0
        encoded: Any = self._tokenizer(text, return_special_tokens_mask=True)
        ids, is_mark = tuple(encoded["input_ids"]), encoded["special_tokens_mask"]
        return ids, next((place for place, mark in enumerate(reversed(is_mark)) if not mark), 0)

    def num_leading(self, text: str) -> int:
        """Tokens that `text` has where more text follows it: without a mark at its end."""
        if not text:
            return 0
        encoded: Any = self._tokenizer(text)
        ids = encoded["input_ids"]
        has_mark = bool(ids) and ids[-1] in self._tokenizer.all_special_ids
        return len(ids) - has_mark

    def decode(self, token_ids: Rows[int], *, skip_special_tokens: bool = True) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def tokenized(self, ids: Ids, task: Tokenize) -> Encoded:
        """The answer to `task`. An id for which the tokenizer has no token, beyond its own, has no text."""
        spelled: Any = self._tokenizer.convert_ids_to_tokens(list(ids)) if task.with_texts else ()
        return tokenized(ids, [text or "" for text in spelled])

    def detokenized(self, task: Detokenize) -> Encoded:
        ids = as_ids(task.ids, self.size, "tokens") or ()
        return detokenized(ids, self.decode(ids, skip_special_tokens=task.skip_special_tokens))
