"""Problems as tokens: the tokenizer of a text model, its prompts, and batches for training.

A prompt of an HRM-Text is BOQ, condition tokens, the problem and EOQ; one of another network is the
problem and `Answer:` on a line of its own. A response ends with EOA.
"""

import itertools
from collections.abc import Iterator, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from scripts.train.problems.problem import Problem
from scripts.train.problems.streams import training_stream
from scripts.train.special_tokens import (
    BOQ,
    CONDITION_TOKENS,
    CONTEXT_WINDOW,
    EOA,
    EOQ,
    SPECIAL_TOKENS,
    as_transformers,
)
from scripts.train.text_recipe import TextRecipe

TRAINED_CONDITIONS = (("direct",), ("cot",), ("synth", "cot"))
CAUSAL_END_OF_PROMPT = "\nAnswer:"
"""Ends the prompt of a causal model. White space at the end would be scored with the answer."""
_SORTED_BATCHES = 8
_WIDTH_MULTIPLE = 8


def train_tokenizer(texts: Iterator[str], recipe: TextRecipe) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of `vocab_size` tokens, in which each digit is a token of its own.

    One for another network than HRM-Text puts BOQ before a text by itself.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if recipe.net != "hrm-text":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOQ} $A",
            pair=f"{BOQ} $A $B",
            special_tokens=[(BOQ, tokenizer.token_to_id(BOQ))],
        )
    return as_transformers(tokenizer)


class Encoder:
    """Turns problems into token ids, as the network of a recipe is prompted."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, recipe: TextRecipe) -> None:
        self._tokenizer = tokenizer
        self._is_causal = recipe.net != "hrm-text"
        self._conditions = itertools.cycle(TRAINED_CONDITIONS)

    def encode(self, problems: Sequence[Problem]) -> list[tuple[list[int], int]]:
        """Return the ids of each prompt with its response, and the number of those of the prompt.

        Conditions take turns.
        """
        prompts = [self._prompt(problem.prompt) for problem in problems]
        responses = [problem.response + EOA for problem in problems]
        rows = []
        for prompt, response in zip(self._ids(prompts), self._ids(responses), strict=True):
            rows.append((prompt + response, len(prompt)))
        return rows

    def _prompt(self, text: str) -> str:
        if self._is_causal:
            return BOQ + text + CAUSAL_END_OF_PROMPT
        conditions = "".join(CONDITION_TOKENS[name] for name in next(self._conditions))
        return BOQ + conditions + text + EOQ

    def _ids(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids


def batches(
    problems: Iterator[Problem], encoder: Encoder, *, batch_size: int, pad: int, seed: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches as of `collate` without end.

    The problems of eight batches are drawn together and sorted by length, so that a batch has
    little padding. The eight batches are yielded in random order.
    """
    shuffle = torch.Generator().manual_seed(seed)
    while True:
        drawn = list(itertools.islice(problems, batch_size * _SORTED_BATCHES))
        rows = [row for row in encoder.encode(drawn) if len(row[0]) <= CONTEXT_WINDOW]
        rows.sort(key=lambda row: len(row[0]))
        starts = range(0, len(rows), batch_size)
        for number in torch.randperm(len(starts), generator=shuffle).tolist():
            start = starts[number]
            yield collate(rows[start : start + batch_size], pad)


class Batches(IterableDataset[dict[str, torch.Tensor]]):
    """The batches of a recipe without end. Each process of a DataLoader draws other problems."""

    def __init__(self, recipe: TextRecipe, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._seed = seed

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        seed = self._seed * 1_009 + (0 if worker is None else worker.id)
        return batches(
            training_stream(self._recipe.domain, seed),
            Encoder(self._tokenizer, self._recipe),
            batch_size=self._recipe.batch_size,
            pad=self._tokenizer.pad_token_id,
            seed=seed,
        )


def batch_loader(
    recipe: TextRecipe, tokenizer: PreTrainedTokenizerFast, seed: int, *, workers: int, pinned: bool
) -> Iterator[dict[str, torch.Tensor]]:
    """Return the batches of a recipe, drawn by so many processes, or in this one without any."""
    loader = DataLoader(
        Batches(recipe, tokenizer, seed),
        batch_size=None,  # the dataset makes whole batches
        num_workers=workers,
        pin_memory=pinned,
        prefetch_factor=8 if workers else None,
    )
    return iter(loader)


def collate(rows: Sequence[tuple[list[int], int]], pad: int) -> dict[str, torch.Tensor]:
    """Return int64 tensors [rows, width] of encoded problems, padded on the right.

    `token_type_ids` are 1 on the prompt, else 0. `labels` are -100 on the prompt and the padding,
    and the token ids on the response. The width is a multiple of eight.
    """
    longest = max(len(ids) for ids, _ in rows)
    width = -(-longest // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
    ids = torch.full((len(rows), width), pad)
    types = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, (tokens, num_prompt) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        types[row, :num_prompt] = 1
        labels[row, num_prompt : len(tokens)] = ids[row, num_prompt : len(tokens)]
    return {"input_ids": ids, "token_type_ids": types, "labels": labels}
