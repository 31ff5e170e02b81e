"""Any transformers encoder (BERT and its kin), for vectors of texts or for a classifier's labels.

The network's own code runs on padded rows under its attention mask. On loading, padded rows are
compared with the same rows alone. A network whose results depend on padding is refused.
"""

from collections.abc import Callable, Iterator, Sequence
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
    PreTrainedTokenizerBase,
)

from shared.errors import FleetError, InvalidRequest
from shared.messages import Classify, Detokenize, Embed, Task, TaskName, Tokenize, name_of
from shared.tasks.runner_options import TextOptions
from shared.tasks.words import RankText
from worker.engine.runner import RunnerOptions, RunnerSpec
from worker.engine.sequence import (
    Classified,
    Encoded,
    EncodedText,
    Slice,
    StepResult,
    TokenSequence,
)
from worker.engine.states import pooled
from worker.kv.attention import length_groups
from worker.models.encoder_layers import join_encoder, lengths_of_rows
from worker.models.errors import ModelFormatError
from worker.models.hf_directory import directory_of
from worker.models.reading import reading, reason_of
from worker.models.sentence import SentenceModules, read_sentence_modules
from worker.models.weight_size import weight_size
from worker.models.weights import NO_NETWORK, load_tokenizer, read_config
from worker.runners.accelerators import prepare
from worker.runners.allocation import tells_out_of_memory
from worker.tasks.labels import labels_of, scores_of
from worker.text.chat import ChatTemplate
from worker.text.vocabulary import Vocabulary

CLASSIFIER = "ForSequenceClassification"
_TEXT_TASKS: tuple[TaskName, ...] = ("embed", "tokenize", "detokenize")
_UNUSED = "pooler."
"""Prefix of weights that pooling by the mean does not use. Many bare networks lack them."""
_TOLERANCE = {torch.float32: 1e-3}
_LOW_TOLERANCE = 0.1
"""The tolerance for dtypes with fewer bits."""

Ids = tuple[int, ...]


@dataclass(frozen=True)
class EncodedSentence(Encoded):
    """A text whose first `num_unpooled` tokens, those of a prompt, take no part in its vector."""

    num_unpooled: int = 0


@dataclass(frozen=True)
class EncodedPair(EncodedText):
    """A query and a text to be ranked by it. `token_types` tell them apart, if there are any."""

    token_types: Ids = ()


class EncoderRunner:
    """An encoder. `sentence` are the modules of a sentence-transformers model behind it, if any.

    `is_joined` tells whether the kernels compute its layers.
    """

    eos_ids: frozenset[int] = frozenset()

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        pad_id: int,
        spec: RunnerSpec,
        sentence: SentenceModules | None = None,
        *,
        is_joined: bool = False,
    ) -> None:
        self.spec = spec
        self._is_joined = is_joined
        self._sentence = sentence
        self._num_unpooled = 0
        if sentence is not None and not sentence.includes_prompt:
            self._num_unpooled = vocabulary.num_leading(sentence.text(""))
        self.model = model
        self._vocabulary = vocabulary
        self._pad_id = pad_id

    def encode(self, task: Task) -> Encoded:
        if name_of(task) not in self.spec.tasks or not isinstance(
            task, Classify | Embed | RankText | Tokenize | Detokenize
        ):
            raise InvalidRequest(
                f"This model reads texts and does not {name_of(task)}.", field="model"
            )
        if isinstance(task, RankText):
            window = self.spec.context_window
            ids, token_types = self._vocabulary.pair(task.query, task.text, window)
            return EncodedPair(ids, token_types=token_types)
        sentence = self._sentence
        if sentence is None or not isinstance(task, Embed) or not isinstance(task.text, str):
            return self._vocabulary.encode(task, self.spec.context_window)

        prompted = msgspec.structs.replace(task, text=sentence.text(task.text))
        encoded = self._vocabulary.encode(prompted, self.spec.context_window)
        # At least one token takes part, however much was cut off.
        num_unpooled = min(self._num_unpooled, len(encoded.prompt_ids) - 1)
        return EncodedSentence(**vars(encoded), num_unpooled=num_unpooled)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._vocabulary.decode(token_ids)

    def release(self, sequence: TokenSequence) -> None:
        return

    @tells_out_of_memory
    @torch.inference_mode()
    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        """Read all texts, those of similar length together."""
        results: list[StepResult | FleetError] = [None] * len(slices)
        pooled_indices = []
        other_indices = []
        for index, part in enumerate(slices):
            if part.sequence.encoded.is_pooled:
                pooled_indices.append(index)
            else:
                other_indices.append(index)
        self._read(slices, pooled_indices, self._pool, results)
        self._read(slices, other_indices, self._classify, results)
        return results

    def _read(
        self,
        slices: Sequence[Slice],
        indices: Sequence[int],
        read: Callable[[Sequence[Encoded]], list[StepResult | FleetError]],
        results: list[StepResult | FleetError],
    ) -> None:
        """Let `read` compute the texts of the slices `indices`, into `results`.

        Joined layers compute nothing for padding, so that texts of all lengths go together.
        """
        if not indices:
            return
        lengths = [len(slices[index].sequence.encoded.prompt_ids) for index in indices]
        if self._is_joined:
            groups = [list(range(len(indices)))]
        else:
            groups = length_groups(lengths)
        for group in groups:
            group_indices = [indices[number] for number in group]
            texts = [slices[index].sequence.encoded for index in group_indices]
            for index, result in zip(group_indices, read(texts), strict=True):
                results[index] = result

    def _pool(self, texts: Sequence[Encoded]) -> list[StepResult | FleetError]:
        """Return a vector for each text, as the sum of the states of its tokens."""
        rows = [text.prompt_ids for text in texts]
        states_of = last_states(self.model, rows, self._pad_id)
        results = []
        for text, states in zip(texts, states_of, strict=True):
            if self._sentence is None:
                results.append(pooled(states, self.spec.name))
                continue
            num_unpooled = text.num_unpooled if isinstance(text, EncodedSentence) else 0
            vector = self._sentence.vector(states, num_unpooled)
            # The vector is finished. As the state of every token it is their mean.
            copies = vector.expand(len(text.prompt_ids), -1)
            results.append(pooled(copies, self.spec.name))
        return results

    def _classify(self, texts: Sequence[Encoded]) -> list[StepResult | FleetError]:
        rows = [text.prompt_ids for text in texts]
        types = [_types_of(text) for text in texts]
        logits = class_logits(self.model, rows, self._pad_id, types)
        scores = scores_of(logits, self.model.config)
        results = []
        for text_scores, text in zip(scores, texts, strict=True):
            results.append(self._labels(text_scores, text))
        return results

    def _labels(self, scores: list[float], text: Encoded) -> StepResult | FleetError:
        assert isinstance(text, EncodedText)
        labels = labels_of(scores, self.model.config, self.spec.name)
        if isinstance(labels, FleetError):
            return labels
        return Classified(labels[: text.top_k])


def _types_of(text: Encoded) -> Ids:
    return text.token_types if isinstance(text, EncodedPair) else ()


def last_states(model: PreTrainedModel, rows: Sequence[Ids], pad_id: int) -> list[Tensor]:
    """Return the last hidden states [N, hidden] of each row."""
    with lengths_of_rows([len(row) for row in rows]):
        read = model.base_model(**_padded(rows, pad_id, model.device))
    states: Tensor = read.last_hidden_state
    return [states[index, : len(row)] for index, row in enumerate(rows)]


def class_logits(
    model: PreTrainedModel, rows: Sequence[Ids], pad_id: int, types: Sequence[Ids] = ()
) -> Tensor:
    """Return the rows' logits [B, labels] in float32.

    `types` are those of the rows' tokens; without any, all are of type 0.
    """
    inputs = _padded(rows, pad_id, model.device)
    # Many networks have no types, and refuse the argument.
    if any(any(row) for row in types):
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        for index, row in enumerate(types):
            inputs["token_type_ids"][index, : len(row)] = torch.tensor(row)
    with lengths_of_rows([len(row) for row in rows]):
        logits: Tensor = model(**inputs).logits
    return logits.float()


def _padded(rows: Sequence[Ids], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """Return the rows as the network's inputs, padded at their ends."""
    width = max(len(row) for row in rows)
    ids = []
    mask = []
    for row in rows:
        num_padding = width - len(row)
        ids.append([*row, *[pad_id] * num_padding])
        mask.append([1] * len(row) + [0] * num_padding)
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def load(options: RunnerOptions) -> EncoderRunner:
    """Load an encoder, its tokenizer and its sentence-transformers modules, if it has any.

    Raise ModelFormatError for weights that do not match, and for networks that cannot be served in
    batches.
    """
    path = directory_of(Path(options.path))
    config = read_config(path)
    if config.is_encoder_decoder:
        raise ModelFormatError(
            f"{path} holds an encoder-decoder, which is not served; serve another model."
        )
    is_classifier = any(name.endswith(CLASSIFIER) for name in config.architectures or ())
    model = nn.Module.to(
        _load_model(path, getattr(torch, options.dtype), is_classifier=is_classifier),
        torch.device(options.device),
    )
    tokenizer = load_tokenizer(Path(options.tokenizer_path or path))
    pad_id = _pad_id(config, tokenizer)
    check_padding(model, pad_id, is_classifier=is_classifier)

    count = model.num_parameters() / 1e6
    description = f"{type(model).__name__}: {count:.1f} M parameters, hidden {config.hidden_size}"
    if is_classifier:
        description += f", {config.num_labels} labels"
    # After the checks and the count of parameters, which need the layers that are replaced.
    joined = join_encoder(model)
    prepare(model, options)
    if joined is not None:
        joined.pack()

    sentence = read_sentence_modules(path, config.hidden_size)
    max_tokens = None
    if sentence is not None:
        description += f", {sentence.description}"
        max_tokens = sentence.max_tokens
        for step in sentence.steps:
            step.to(options.device)

    tasks = _TEXT_TASKS
    trial: Task = Embed("a")
    if is_classifier:
        tasks = ("classify", *_TEXT_TASKS)
        if config.num_labels == 1:
            tasks = ("text-ranking", *tasks)
        trial = Classify("a")
    limits = _limits(model, options.context_window, tokenizer.model_max_length, max_tokens)
    spec = RunnerSpec(
        "encoder",
        options.name,
        found=f"{description}, vocabulary {config.vocab_size}, {options.precision}",
        context_window=min(limits),
        max_batch=options.max_batch,
        step_tokens=options.step_tokens,
        tasks=tasks,
        trial=trial,
        weights=weight_size(model),
    )
    template = ChatTemplate(tokenizer, options.declared(TextOptions).chat_template)
    vocabulary = Vocabulary(tokenizer, config.vocab_size, template, keeps_end_marks=True)
    return EncoderRunner(model, vocabulary, pad_id, spec, sentence, is_joined=joined is not None)


def _pad_id(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of padding: the config's, else the tokenizer's, else 0."""
    for pad_id in (config.pad_token_id, tokenizer.pad_token_id):
        if pad_id is not None:
            return int(pad_id)
    return 0


def _load_model(path: Path, dtype: torch.dtype, *, is_classifier: bool) -> PreTrainedModel:
    """Load the network. Raise ModelFormatError, which names the tensors that do not match.

    The files of a network that is no classifier may also hold the weights of heads, which are not
    used.
    """
    kind: Any = AutoModelForSequenceClassification if is_classifier else AutoModel
    with reading(path, NO_NETWORK, kind="an encoder"):
        model, info = kind.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that the error below can name them
        )

    missing = info["missing_keys"]
    left_over = info["unexpected_keys"]
    if not is_classifier:
        missing = [name for name in missing if not name.startswith(_UNUSED)]
        left_over = [name for name in left_over if _is_of_network(name, model)]
    names_by_fault = {
        "of another shape": info["mismatched_keys"],
        "missing": missing,
        "left over": left_over,
    }
    problems = []
    for fault, names in names_by_fault.items():
        if names:
            first_names = sorted(str(name) for name in names)[:5]
            problems.append(f"{fault}: {', '.join(first_names)}")
    if problems:
        problem = (
            f"The weights in {path} do not match the model of config.json: {'; '.join(problems)}"
        )
        raise ModelFormatError(f"{problem}; copy both again.")

    model.config.use_cache = False
    loaded: PreTrainedModel = model.requires_grad_(False).eval()
    return loaded


def _is_of_network(name: str, model: PreTrainedModel) -> bool:
    """Return whether a weight's name begins with a part of the network, not with a head."""
    part = name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0]
    return part in dict(model.named_children())


@torch.inference_mode()
def check_padding(model: PreTrainedModel, pad_id: int, *, is_classifier: bool) -> None:
    """Compare two rows of different lengths in one batch with the same rows alone.

    Raise ModelFormatError where the results differ, or are not finite.
    """
    ids = [token for token in range(min(16, model.config.vocab_size)) if token != pad_id]
    rows = [tuple(ids[:2]), tuple(ids[1:8])]
    # A network is foreign code: it may raise any error when it runs on padded rows.
    try:
        padded = last_states(model, rows, pad_id)
        alone = [last_states(model, [row], pad_id)[0] for row in rows]
        if is_classifier:
            padded.extend(class_logits(model, rows, pad_id))
            for row in rows:
                alone.extend(class_logits(model, [row], pad_id))
    except Exception as error:
        problem = f"{type(model).__name__} cannot be run on padded rows: {reason_of(error)}"
        raise ModelFormatError(f"{problem}; serve another model.") from error

    for states in (*alone, *padded):
        if not torch.isfinite(states).all():
            raise ModelFormatError(
                "The network's states are not finite: its weights are broken; copy them again."
            )
    tolerance = _TOLERANCE.get(model.dtype, _LOW_TOLERANCE)
    for states, expected in zip(padded, alone, strict=True):
        difference = (states - expected).abs().max()
        largest = float(expected.abs().max())
        if not difference <= tolerance * max(1.0, largest):
            problem = f"{type(model).__name__} has other results when rows are padded"
            raise ModelFormatError(f"{problem}; serve another model.")


def _limits(model: PreTrainedModel, *requested: int | None) -> Iterator[int]:
    """Yield all limits of the context window, `requested` first."""
    for limit in (*requested, getattr(model.config, "max_position_embeddings", None)):
        if limit is not None:
            yield int(limit)

    # A position table with a padding row begins behind that row.
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding) or not name.endswith("position_embeddings"):
            continue
        if module.padding_idx is not None:
            yield module.num_embeddings - module.padding_idx - 1
