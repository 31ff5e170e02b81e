"""Any transformers encoder (BERT and its kin) that reads a text in one pass: as a vector, or as
labels of a classifier.

The network's own code runs on padded rows under its attention mask. On loading, rows are compared
with the same rows alone: a network that padding disturbs is refused.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from shared.errors import FleetError, InvalidRequest
from shared.messages import Classify, Detokenize, Embed, Label, Task, TaskName, Tokenize, name_of
from shared.runner_options import TextOptions
from worker.accelerators import prepare
from worker.chat import ChatTemplate
from worker.kv.attention import length_groups
from worker.models.errors import ModelFormatError
from worker.models.hf_directory import directory_of
from worker.models.reading import reading, reason_of
from worker.models.sentence import SentenceModules, read_sentence_modules
from worker.models.weights import NO_NETWORK, load_tokenizer, read_config
from worker.runners.allocation import tells_out_of_memory
from worker.runners.base import RunnerOptions, RunnerSpec
from worker.sampler import broken
from worker.sequence import Classified, Encoded, EncodedText, Slice, StepResult, TokenSequence
from worker.states import pooled
from worker.vocabulary import Vocabulary

CLASSIFIER = "ForSequenceClassification"
_TEXT_TASKS: tuple[TaskName, ...] = ("embed", "tokenize", "detokenize")
_UNUSED = "pooler."
"""Weights of a bare network that pooling by the mean has no use for: many files lack them."""
_TOLERANCE = {torch.float32: 1e-3}
_LOW_TOLERANCE = 0.1

Ids = tuple[int, ...]


@dataclass(frozen=True)
class EncodedSentence(Encoded):
    """A text of which the first `num_unpooled` tokens are read and take no part in its vector."""

    num_unpooled: int = 0


class EncoderRunner:
    eos_ids: frozenset[int] = frozenset()

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        pad_id: int,
        spec: RunnerSpec,
        sentence: SentenceModules | None = None,
    ) -> None:
        self.spec = spec
        self._sentence = sentence
        self._num_unpooled = 0
        if sentence is not None and not sentence.includes_prompt:
            self._num_unpooled = vocabulary.num_leading(sentence.text(""))
        self._model = model
        self._vocabulary = vocabulary
        self._pad_id = pad_id

    def encode(self, task: Task) -> Encoded:
        if name_of(task) not in self.spec.tasks or not isinstance(
            task, Classify | Embed | Tokenize | Detokenize
        ):
            raise InvalidRequest(
                f"This model reads texts and does not {name_of(task)}.", field="model"
            )
        sentence = self._sentence
        if sentence is None or not isinstance(task, Embed) or not isinstance(task.text, str):
            return self._vocabulary.encode(task, self.spec.context_window)
        whole = msgspec.structs.replace(task, text=sentence.text(task.text))
        encoded = self._vocabulary.encode(whole, self.spec.context_window)
        num_unpooled = min(self._num_unpooled, len(encoded.prompt_ids) - 1)
        return EncodedSentence(**{**vars(encoded), "num_unpooled": num_unpooled})

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._vocabulary.decode(token_ids)

    def release(self, sequence: TokenSequence) -> None:
        return

    @tells_out_of_memory
    @torch.inference_mode()
    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        """All texts, those of like length together."""
        results: list[StepResult | FleetError] = [None] * len(slices)
        texts = [part.sequence.encoded for part in slices]
        for is_pooled in (True, False):
            wanted = [index for index, text in enumerate(texts) if text.is_pooled == is_pooled]
            read = self._pool if is_pooled else self._classify
            for group in length_groups([len(texts[index].prompt_ids) for index in wanted]):
                places = [wanted[at] for at in group]
                for place, result in zip(
                    places, read([texts[place] for place in places]), strict=True
                ):
                    results[place] = result
        return results

    def _pool(self, texts: Sequence[Encoded]) -> list[StepResult | FleetError]:
        states = last_states(self._model, [text.prompt_ids for text in texts], self._pad_id)
        if self._sentence is None:
            return [pooled(own, self.spec.name) for own in states]
        return [self._vector(own, text) for own, text in zip(states, texts, strict=True)]

    def _vector(self, states: Tensor, text: Encoded) -> StepResult | FleetError:
        """A vector that is whole already: the mean of itself."""
        assert self._sentence is not None
        num_unpooled = text.num_unpooled if isinstance(text, EncodedSentence) else 0
        return pooled(self._sentence.vector(states, num_unpooled)[None], self.spec.name)

    def _classify(self, texts: Sequence[Encoded]) -> list[StepResult | FleetError]:
        logits = class_logits(self._model, [text.prompt_ids for text in texts], self._pad_id)
        return [
            self._labels(row, text)
            for row, text in zip(scores_of(logits, self._model.config), texts, strict=True)
        ]

    def _labels(self, scores: list[float], text: Encoded) -> StepResult | FleetError:
        assert isinstance(text, EncodedText)
        if not all(map(math.isfinite, scores)):
            return broken(self.spec.name)
        names: Any = self._model.config.id2label
        labels = [Label(str(names[number]), score) for number, score in enumerate(scores)]
        return Classified(tuple(sorted(labels, key=lambda label: -label.score)[: text.top_k]))


def last_states(model: PreTrainedModel, rows: Sequence[Ids], pad_id: int) -> list[Tensor]:
    """Last hidden states [N, hidden] of each row."""
    states: Tensor = model.base_model(**_padded(rows, pad_id, model.device)).last_hidden_state
    return [states[at, : len(row)] for at, row in enumerate(rows)]


def class_logits(model: PreTrainedModel, rows: Sequence[Ids], pad_id: int) -> Tensor:
    """[B, labels] in float32."""
    logits: Tensor = model(**_padded(rows, pad_id, model.device)).logits
    return logits.float()


def scores_of(logits: Tensor, config: PretrainedConfig) -> list[list[float]]:
    """By transformers' rule: a regression as it is, several labels or a single one each by itself,
    else a softmax."""
    if config.problem_type == "regression":
        scores = logits
    elif config.problem_type == "multi_label_classification" or logits.shape[-1] == 1:
        scores = logits.sigmoid()
    else:
        scores = logits.softmax(-1)
    rows: list[list[float]] = scores.tolist()
    return rows


def _padded(rows: Sequence[Ids], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    width = max(map(len, rows))
    ids = [[*row, *[pad_id] * (width - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def load(options: RunnerOptions) -> EncoderRunner:
    """Raises ModelFormatError for weights that do not match, and for networks that cannot be served
    in batches."""
    path = directory_of(Path(options.path))
    config = read_config(path)
    if config.is_encoder_decoder:
        raise ModelFormatError(
            f"{path} holds an encoder-decoder, which is not served; serve another model."
        )
    is_classifier = any(name.endswith(CLASSIFIER) for name in config.architectures or ())
    model = nn.Module.to(
        _load_model(path, getattr(torch, options.dtype), is_classifier),
        torch.device(options.device),
    )
    tokenizer = load_tokenizer(Path(options.tokenizer_path) if options.tokenizer_path else path)
    pad_id = next(
        (pad for pad in (config.pad_token_id, tokenizer.pad_token_id) if pad is not None), 0
    )
    check_padding(model, pad_id, is_classifier=is_classifier)
    found = (
        f"{type(model).__name__}: {model.num_parameters() / 1e6:.1f} M parameters, hidden "
        f"{config.hidden_size}"
    )
    found += f", {config.num_labels} labels" if is_classifier else ""
    prepare(model, options)
    sentence = read_sentence_modules(path, config.hidden_size)
    most_tokens = None
    if sentence is not None:
        found += f", {sentence.description}"
        most_tokens = sentence.max_tokens
        for step in sentence.steps:
            step.to(options.device)
    spec = RunnerSpec(
        "encoder",
        options.name,
        f"{found}, vocabulary {config.vocab_size}, {options.precision}",
        min(_limits(model, options.context_window, tokenizer.model_max_length, most_tokens)),
        options.max_batch,
        step_tokens=options.step_tokens,
        tasks=("classify", *_TEXT_TASKS) if is_classifier else _TEXT_TASKS,
        trial=Classify("a") if is_classifier else Embed("a"),
    )
    template = ChatTemplate(tokenizer, options.declared(TextOptions).chat_template)
    vocabulary = Vocabulary(tokenizer, config.vocab_size, template, keeps_end_marks=True)
    return EncoderRunner(model, vocabulary, pad_id, spec, sentence)


def _load_model(path: Path, dtype: torch.dtype, is_classifier: bool) -> PreTrainedModel:
    """Heads that are not used may lie in the files; of the network itself nothing may be missing or
    left over."""
    kind: Any = AutoModelForSequenceClassification if is_classifier else AutoModel
    with reading(path, NO_NETWORK, kind="an encoder"):
        model, info = kind.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are told of by name below
        )
    missing = [
        name for name in info["missing_keys"] if is_classifier or not name.startswith(_UNUSED)
    ]
    parts = {name for name, _ in model.named_children()}
    left_over = [
        name
        for name in info["unexpected_keys"]
        if is_classifier
        or name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0] in parts
    ]
    faults = [
        ("of another shape", info["mismatched_keys"]),
        ("missing", missing),
        ("left over", left_over),
    ]
    problems = [
        f"{what}: {', '.join(sorted(map(str, names))[:5])}" for what, names in faults if names
    ]
    if problems:
        problem = (
            f"The weights in {path} do not match the model of config.json: {'; '.join(problems)}"
        )
        raise ModelFormatError(f"{problem}; copy both again.")
    model.config.use_cache = False
    loaded: PreTrainedModel = model.requires_grad_(False).eval()
    return loaded


@torch.inference_mode()
def check_padding(model: PreTrainedModel, pad_id: int, *, is_classifier: bool) -> None:
    """A short row beside a longer one must come out as it does alone."""
    ids = [token for token in range(min(16, model.config.vocab_size)) if token != pad_id]
    rows = [tuple(ids[:2]), tuple(ids[1:8])]
    try:
        beside = last_states(model, rows, pad_id)
        alone = [last_states(model, [row], pad_id)[0] for row in rows]
        if is_classifier:
            beside += list(class_logits(model, rows, pad_id))
            alone += [class_logits(model, [row], pad_id)[0] for row in rows]
    except (
        Exception
    ) as error:  # the seam to foreign code: a network may stumble over anything of ours
        problem = f"{type(model).__name__} cannot be run on padded rows: {reason_of(error)}"
        raise ModelFormatError(f"{problem}; serve another model.") from error
    if not all(torch.isfinite(states).all() for states in [*alone, *beside]):
        raise ModelFormatError(
            "The network's states are not finite: its weights are broken; copy them again."
        )
    allowed = _TOLERANCE.get(model.dtype, _LOW_TOLERANCE)
    for one, other in zip(beside, alone, strict=True):
        if not (one - other).abs().max() <= allowed * max(1.0, float(other.abs().max())):
            problem = f"{type(model).__name__} says something else when rows are padded"
            raise ModelFormatError(f"{problem}; serve another model.")


def _limits(model: PreTrainedModel, *wanted: int | None) -> Iterable[int]:
    """Everything that bounds the context window. Position tables with a padding row begin behind
    that."""
    for limit in (*wanted, getattr(model.config, "max_position_embeddings", None)):
        if limit is not None:
            yield int(limit)
    for name, module in model.named_modules():
        if (
            isinstance(module, nn.Embedding)
            and name.endswith("position_embeddings")
            and module.padding_idx is not None
        ):
            yield module.num_embeddings - module.padding_idx - 1
