"""Small tokenizers of every kind that models bring, with every choice of marks around a text. None
needs a file."""

from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SIZE = 320
"""At least as many ids as any of them has."""

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
WORDS = ("hello", "paris", "play", "ten", "world")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))

MARKS: dict[str, str] = {
    "none": "$A",
    "start": f"{START} $A",
    "end": f"$A {END}",
    "both": f"{START} $A {END}",
}
"""Templates of what stands around a text."""


def byte_level() -> Tokenizer:
    """Of GPT-2's kind: bytes and some words, each with and without the space before it."""
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        for start in (word[0], "Ġ" + word[0]):
            if len(start) == 2 and ("Ġ", word[0]) not in merges:
                merges.append(("Ġ", word[0]))
            for place in range(1, len(word)):
                pair = (start + word[1:place], word[place])
                if pair not in merges:
                    merges.append(pair)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [START, END, UNKNOWN, *alphabet, *(one + other for one, other in merges)]
    tokenizer = Tokenizer(models.BPE(vocab=_numbered(pieces), merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def metaspace() -> Tokenizer:
    """Of SentencePiece's kind, with a space before the first word too."""
    tokenizer = _pieces()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def metaspace_bare() -> Tokenizer:
    """The same without a space before the first word."""
    tokenizer = _pieces()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    return tokenizer


def llama() -> Tokenizer:
    """SentencePiece as Llama has it: unknown characters are bytes, and the first space is
    stripped."""
    tokenizer = _pieces(byte_fallback=True)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def word_piece() -> Tokenizer:
    """Of BERT's kind: tokens are words, or go on with one."""
    pieces = [
        START,
        END,
        UNKNOWN,
        *WORDS,
        "a",
        "b",
        ".",
        ",",
        "'",
        "s",
        "not",
        "do",
        "##al",
        "##s",
        "##a",
        "##b",
    ]
    tokenizer = Tokenizer(models.WordPiece(_numbered(pieces), unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def word_end() -> Tokenizer:
    """Of the first GPT's kind: the last piece of a word is marked."""
    pieces = [
        START,
        END,
        UNKNOWN,
        *(f"{word}</w>" for word in WORDS),
        "hel",
        "lo</w>",
        "a",
        "b",
        "a</w>",
        "b</w>",
    ]
    model = models.BPE(
        vocab=_numbered(pieces), merges=[], end_of_word_suffix="</w>", unk_token=UNKNOWN
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    build.__name__: build
    for build in (byte_level, metaspace, metaspace_bare, llama, word_piece, word_end)
}


def tokenizer_of(kind: str, marks: str = "none") -> PreTrainedTokenizerFast:
    """Of one of KINDS, with one of MARKS around a text."""
    tokenizer = KINDS[kind]()
    named: dict[str, Any] = {"bos_token": START, "eos_token": END, "unk_token": UNKNOWN}
    tokenizer.add_special_tokens([START, END, UNKNOWN])
    ids = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=MARKS[marks], pair=None, special_tokens=ids
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def spelled(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The tokens of single bytes for a text, of a kind that has them; else none."""
    vocabulary = tokenizer.get_vocab()
    if BYTES[0] in vocabulary:
        return [vocabulary[BYTES[byte]] for byte in text.encode()]
    if "Ġ" not in vocabulary:
        return []
    singles = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    singles.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return list(singles.encode(text).ids)


def _pieces(*, byte_fallback: bool = False) -> Tokenizer:
    spaced = [f"▁{word}" for word in WORDS]
    letters = ["▁", "▁▁", "a", "▁a", "b", "c", "bc", ".", *"hello"[:1], "e", "l", "o"]
    pieces = [(START, 0.0), (END, 0.0), (UNKNOWN, -20.0)]
    for piece in (*spaced, *WORDS, *letters, *(BYTES if byte_fallback else ())):
        pieces.append((piece, -float(2 + len(pieces) % 3)))
    return Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=byte_fallback))


def _numbered(pieces: list[str]) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
