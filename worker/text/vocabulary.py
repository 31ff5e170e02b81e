"""A model's tokenizer with its chat template: texts and dialogues as token ids, and ids as text."""

from collections.abc import Iterator, Sequence, Set
from typing import Any

from transformers import PreTrainedTokenizerBase

from shared.errors import WorkerFailed
from shared.messages import Chat, Classify, Detokenize, Embed, Prompt, Text, Tokenize
from worker.engine.sequence import Encoded
from worker.models.errors import ModelFormatError
from worker.text.answers import detokenized, tokenized
from worker.text.chat import ChatTemplate
from worker.text.encoding import as_ids, check_ids, encode_text
from worker.text.foreign import blamed, is_foreign, words_of

Ids = tuple[int, ...]

_PROBES = ("a", "1", ".", "the", "\u4e00")
"""Texts of which most tokenizers know one. They show the marks that a tokenizer puts around it."""
_MAX_PROBES = 64


class Vocabulary:
    """A tokenizer whose ids are from 0 to `size` - 1.

    A tokenizer may add marks before a text and behind it: special tokens such as BOS and EOS. The
    marks behind it are no part of a prompt that goes on, unless the model's family was trained with
    them (`keeps_end_marks`). The `field` of a method is the input that InvalidRequest names.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        size: int,
        template: ChatTemplate,
        *,
        keeps_end_marks: bool = False,
    ) -> None:
        self.size = size
        self._tokenizer = tokenizer
        self._template = template
        self._keeps_end_marks = keeps_end_marks
        self.start_marks = _start_marks(tokenizer)

    def ids(self, text: Text, field: str, *, special: bool, names: bool = True) -> Ids:
        """Return the ids of a text, with all the tokenizer's own marks if `special`.

        Without `names` the names of special tokens are plain text. Raise InvalidRequest for a text
        that the tokenizer cannot read, or ids outside the vocabulary.
        """
        given = as_ids(text, self.size, field)
        if given is not None:
            return given
        options: dict[str, bool] = {}
        if not names:
            options["split_special_tokens"] = True
        with blamed(field, "the model's tokenizer cannot read it"):
            encoded: Any = self._tokenizer(text, add_special_tokens=special, **options)
            ids = tuple(encoded["input_ids"])
        return self.known(ids, field)

    def open_ids(self, text: Text, field: str) -> Ids:
        """Return the ids of a text that goes on.

        The marks that the tokenizer puts before a text are there, those behind it are not.
        """
        plain = self.ids(text, field, special=False)
        if not isinstance(text, str):
            return plain
        return self.known((*self.start_marks, *plain), field)

    def prompt(self, prompt: Prompt, field: str, *, special: bool = True) -> Ids:
        """Return the ids of a prompt, which is a text, token ids or a dialogue."""
        if isinstance(prompt, Chat):
            # Without marks, because the template writes the special tokens itself.
            return self.ids(self._template.write(prompt), "messages", special=False)
        if special and not self._keeps_end_marks:
            return self.open_ids(prompt, field)
        return self.ids(prompt, field, special=special)

    def encode(self, task: Tokenize | Detokenize | Embed | Classify, window: int) -> Encoded:
        """Encode a task whose text is taken as it is, or a dialogue as the template says.

        `window` is the context window, in tokens.
        """
        if isinstance(task, Tokenize):
            ids = self.prompt(task.prompt, "prompt", special=task.add_special_tokens)
            return self.tokenized(ids, task)
        if isinstance(task, Detokenize):
            return self.detokenized(task)
        ids, num_behind = self._framed(task.text)
        return encode_text(ids, task, window, num_behind=num_behind)

    def pair(self, first: str, second: str, window: int) -> tuple[Ids, Ids]:
        """Return the ids of two texts, and the type of each, as the tokenizer joins them.

        Where both exceed the `window`, the longer one loses its end. A tokenizer without types
        gives none.
        """
        with blamed("documents", "the model's tokenizer cannot read it"):
            encoded: Any = self._tokenizer(
                first, second, truncation="longest_first", max_length=window
            )
        ids = self.known(tuple(encoded["input_ids"]), "documents")
        return ids, tuple(encoded.get("token_type_ids", ()))

    def _framed(self, text: Text) -> tuple[Ids, int]:
        """Return the ids of a text with the tokenizer's own marks, and the number of end marks."""
        given = as_ids(text, self.size, "input")
        if given is not None:
            return given, 0
        with blamed("input", "the model's tokenizer cannot read it"):
            encoded: Any = self._tokenizer(text, return_special_tokens_mask=True)
            ids = tuple(encoded["input_ids"])
            is_mark = encoded["special_tokens_mask"]
        num_behind = 0
        # Ids that are all marks have no text, and so no marks behind it.
        if not all(is_mark):
            while is_mark[-1 - num_behind]:
                num_behind += 1
        return self.known(ids, "input"), num_behind

    def known(self, ids: Ids, field: str) -> Ids:
        """Return `ids`. Raise InvalidRequest if the network does not know one of them."""
        # A tokenizer may have tokens, mostly added ones, that the network does not know.
        check_ids(
            ids, self.size, field, lambda token: str(self._tokenizer.convert_ids_to_tokens(token))
        )
        return ids

    def num_leading(self, text: str) -> int:
        """Return the number of tokens of `text`, without a mark at its end.

        Use this for a text that more text follows.
        """
        if not text:
            return 0
        encoded: Any = self._tokenizer(text)
        ids = encoded["input_ids"]
        if ids and ids[-1] in self._tokenizer.all_special_ids:
            return len(ids) - 1
        return len(ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids. Raise WorkerFailed where the tokenizer cannot."""
        try:
            return self._text(token_ids, skip_special_tokens=skip_special_tokens)
        except BaseException as error:
            if not is_foreign(error):
                raise
            raise WorkerFailed(
                f"The model's tokenizer cannot decode its answer: {words_of(error)}"
            ) from error

    def _text(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def tokenized(self, ids: Ids, task: Tokenize) -> Encoded:
        """Return the answer to `task`: the ids, and the tokens' texts if the task asks for them."""
        if not task.with_texts:
            return tokenized(ids)
        tokens: Any = self._tokenizer.convert_ids_to_tokens(list(ids))
        # An id that the network knows and the tokenizer does not has no token, and so no text.
        return tokenized(ids, [token or "" for token in tokens])

    def detokenized(self, task: Detokenize) -> Encoded:
        """Return the answer to `task`. Raise InvalidRequest for ids that cannot be decoded."""
        ids = as_ids(task.ids, self.size, "tokens") or ()
        with blamed("tokens", "the model's tokenizer cannot decode them"):
            text = self._text(ids, skip_special_tokens=task.skip_special_tokens)
        return detokenized(ids, text)


def _start_marks(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """Return the marks that the tokenizer puts before a text.

    Raise ModelFormatError for a tokenizer that raises an error.
    """
    try:
        special = set(tokenizer.all_special_ids)
        for probe in _probes(tokenizer, special):
            plain = tokenizer.encode(probe, add_special_tokens=False)
            # The token of an unknown text may be the same as a mark.
            if not plain or special.intersection(plain):
                continue
            framed = tokenizer.encode(probe, add_special_tokens=True)
            for start in range(len(framed)):
                if framed[start : start + len(plain)] == plain:
                    return tuple(framed[:start])
    except BaseException as error:
        if not is_foreign(error):
            raise
        raise ModelFormatError(f"The tokenizer cannot be used: {words_of(error)}") from error
    return ()


def _probes(tokenizer: PreTrainedTokenizerBase, special: Set[int]) -> Iterator[str]:
    """Yield texts of which the tokenizer should know one: common texts, then some of its tokens."""
    yield from _PROBES
    num_probes = 0
    for token in sorted(tokenizer.get_vocab().values()):
        if num_probes == _MAX_PROBES:
            return
        if token not in special:
            num_probes += 1
            yield str(tokenizer.decode([token]))
