"""HRM-Text: its prompt format, and its network behind `PagedRunner`.

The model is a Hugging Face directory or a raw checkpoint. A prompt is boq, condition tokens, the
text, eoq; its tokens attend to each other in both directions. The response is causal and ends at
eoa. The number of layers comes from the tensors, because exporters write it in three different
ways.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shared.errors import InvalidRequest
from shared.messages import (
    Chat,
    Depth,
    Detokenize,
    Embed,
    Generate,
    Prompt,
    Read,
    Score,
    Text,
    Tokenize,
)
from shared.tasks.runner_options import HrmTextOptions
from shared.telemetry.logging_setup import fields
from worker.engine.depth import DepthsByEffort, spread
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Encoded
from worker.kv.attention import AttentionPlan, Span, attend
from worker.kv.store import KVShape, KVStore
from worker.models.errors import ModelFormatError
from worker.models.hf_directory import (
    CONFIG,
    check_directory,
    directory_of,
    is_there,
    read_generation_defaults,
)
from worker.models.hrm_text import (
    Attend,
    HrmTextModel,
    HrmTextShape,
    HrmTextState,
    Passes,
    all_passes,
    build_model,
    passes_of,
)
from worker.models.hrm_text_prompt import CONDITIONS, RAW, USUAL, PromptMarks
from worker.models.joined_layers import layers_step
from worker.models.linear import keeps_rows_apart, pack_all_linears
from worker.models.reading import Count, Positive, converted, read_json_object
from worker.models.weight_size import weight_size
from worker.models.weights import load_tokenizer, matrix_shape, read_safetensors_dir, start_ids
from worker.runners.accelerators import prepare
from worker.runners.net import Depths, Draft, Forward, Halts, Layers
from worker.runners.paged import PagedRunner
from worker.text.chat import DIALOGUE, ChatTemplate
from worker.text.encoding import TextTask, encode_generate, encode_read, encode_score, encode_text
from worker.text.rolling import encode_rolling_response
from worker.text.vocabulary import Vocabulary

logger = logging.getLogger("aios.hrm_text")


class _Rope(msgspec.Struct):
    rope_theta: Positive | None = None


class _ExportConfig(msgspec.Struct):
    """Fields of `config.json` for facts that the tensors of an export do not tell."""

    num_attention_heads: Count
    h_cycles: Count = msgspec.field(name="H_cycles")
    l_cycles: Count = msgspec.field(name="L_cycles")
    max_position_embeddings: Count
    embedding_scale: Positive | None = None
    initializer_range: Positive | None = None
    rope_parameters: _Rope | None = None
    rope_theta: Positive = 10000.0
    rms_norm_eps: Positive = 1e-6


class _EndConfig(msgspec.Struct):
    """Fields of `config.json` about the end of a response."""

    eos_token_id: int | list[int] | None = None


@dataclass(frozen=True)
class _Frame:
    """Ids of the tokens around a prompt: boq, those of its conditions, the prompt, eoq."""

    boq: int
    eoq: int
    conditions: dict[str, int]


class HrmTextLanguage:
    """Prompts of HRM-Text, between their marks.

    `condition` may name several conditions joined by commas. Their tokens stand in the same order.
    `raw` adds no marks at all. None stands for the usual condition: `direct` where the tokenizer
    has its token, else raw.

    `marks` is None for an export, whose tokenizer has boq and eoa as its start and end token. If
    the tokenizer lacks marks, prompts are read raw, and `note` says why; otherwise it is empty.
    `ends` are further ids that end a response.

    Raises ModelFormatError for an unknown condition, and for a checkpoint whose marks the tokenizer
    lacks.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        condition: str | None = None,
        marks: PromptMarks | None = None,
        chat_template: str | None = None,
        *,
        ends: frozenset[int] = frozenset(),
    ) -> None:
        is_export = marks is None
        known = marks or _marks_of_export(tokenizer)
        self._template = ChatTemplate(tokenizer, chat_template, DIALOGUE)
        self._vocabulary = Vocabulary(tokenizer, vocab_size, self._template)
        self._frame, self.note = _frame_of(known, tokenizer, is_export=is_export)
        self._has_marks = self._frame is not None and self._template.trial.startswith(known.boq)
        self._start = start_ids(tokenizer)
        if self._frame is not None:
            self._start = (self._frame.boq,)
        self.eos_ids = ends | _end_of(known, tokenizer, is_export=is_export)

        if condition is None:
            condition = USUAL
            if is_export:
                condition = self._usual_condition()
        self._condition = condition
        try:
            self._condition_ids(condition)
        except InvalidRequest as error:
            raise ModelFormatError(f"condition: {error.message}") from None

    def encode(self, task: TextTask, window: int) -> Encoded:
        if isinstance(task, Tokenize):
            return self._vocabulary.tokenized(self._tokenize(task), task)
        if isinstance(task, Detokenize):
            return self._vocabulary.detokenized(task)
        if isinstance(task, Embed):
            ids, head = self._prompt(task.text, None, "input")
            return encode_text(ids, task, window, num_behind=min(head, 1))
        if isinstance(task, Generate):
            ids, head = self._prompt(task.prompt, task.condition, "prompt")
            return encode_generate(ids, task, window, vocab_size=self._vocabulary.size, head=head)
        if isinstance(task, Read):
            ids, _ = self._prompt(task.prompt, task.condition, "prompt")
            return encode_read(ids, self._num_seen(ids), task, window)
        return self._encode_score(task, window)

    def _encode_score(self, task: Score, window: int) -> Encoded:
        condition = task.condition or self._condition
        is_raw = condition == RAW
        if task.method == "aios_compat":
            raise InvalidRequest(
                "`aios_compat` scoring is for ACTv1 brains; `strict` is expected.", field="scoring"
            )

        if task.rolling:
            text = self._ids(task.continuations[0], "prompts", raw=is_raw)
            start, _ = self._prompt("", condition, "prompts")
            if not start:
                start = self._vocabulary.known(self._start, "prompts")
            return encode_rolling_response(start, text, window)

        continuations = [
            self._ids(text, "continuations", raw=is_raw) for text in task.continuations
        ]
        context, head = self._prompt(task.context, condition, "prompts")
        if not context:
            context = self._vocabulary.known(self._start, "prompts")
        return encode_score(context, continuations, window, head=head)

    def _tokenize(self, task: Tokenize) -> tuple[int, ...]:
        """Return the ids of a prompt, in which marks are this family's special tokens.

        A dialogue is formatted even without `add_special_tokens`.
        """
        if isinstance(task.prompt, Chat) or task.add_special_tokens:
            ids, _ = self._prompt(task.prompt, None, "prompt")
            return ids
        return self._ids(task.prompt, "prompt", raw=self._condition == RAW)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._vocabulary.decode(token_ids)

    def _prompt(
        self, prompt: Prompt, requested_condition: str | None, field: str
    ) -> tuple[tuple[int, ...], int]:
        """Return the ids of the formatted prompt, and the number of marks at its start.

        A prompt given as ids is used as it is. So is a dialogue whose template writes the marks.
        Any other dialogue stands between the marks like the text of a prompt.
        """
        condition = requested_condition or self._condition
        text = self._template.write(prompt) if isinstance(prompt, Chat) else prompt
        if isinstance(prompt, Chat) and self._has_marks:
            if requested_condition is not None:
                problem = (
                    "This model's chat template writes the conditions itself; leave "
                    "`condition` out."
                )
                raise InvalidRequest(problem, field="condition")
            condition = RAW
        if condition == RAW or not isinstance(text, str):
            return self._ids(text, field, raw=True), 0

        conditions = self._condition_ids(condition)
        assert self._frame is not None  # without one there are no conditions
        head = (self._frame.boq, *conditions)
        ids = (*head, *self._ids(text.strip(), field, raw=False), self._frame.eoq)
        return self._vocabulary.known(ids, field), len(head)

    def _num_seen(self, ids: tuple[int, ...]) -> int:
        """Return the number of a prompt's tokens up to the last eoq, which the model sees at once.

        Tokens behind the last eoq are a response.
        """
        if self._frame is None or self._frame.eoq not in ids:
            return len(ids)
        return len(ids) - ids[::-1].index(self._frame.eoq)

    def _ids(self, text: Text, field: str, *, raw: bool) -> tuple[int, ...]:
        """Return the ids of text without marks.

        In raw text the names of special tokens stand for those tokens. In other text they are plain
        text.
        """
        return self._vocabulary.ids(text, field, special=False, names=raw)

    def _condition_ids(self, condition: str) -> list[int]:
        """Return the ids of the conditions' tokens.

        Raise InvalidRequest for a condition that is unknown, or named twice.
        """
        if condition == RAW:
            return []
        known = {}
        if self._frame is not None:
            known = self._frame.conditions
        names = [name.strip() for name in condition.split(",")]
        for name in names:
            if name in known:
                continue
            expected = f"{RAW}, as its tokenizer knows none"
            if known:
                expected = f"some of {', '.join(known)}, or {RAW} alone"
            problem = f"Unknown condition {name!r}: expected {expected}."
            raise InvalidRequest(problem, field="condition")
        if len(set(names)) < len(names):
            raise InvalidRequest("Each condition is expected once at most.", field="condition")
        return [known[name] for name in names]

    def _usual_condition(self) -> str:
        """Return `direct`, or raw if an export's tokenizer lacks its token. Note the latter."""
        if self._frame is None:
            return RAW
        if USUAL in self._frame.conditions:
            return USUAL
        others = ", ".join(self._frame.conditions) or "none"
        self.note = (
            f"prompts read raw: the tokenizer has no token of the condition {USUAL} (of "
            f"others: {others})"
        )
        return RAW


class HrmTextNet:
    """An HRM-Text network as a `Net`."""

    is_prefix = True
    halts: Halts | None = None
    draft: Draft | None = None

    def __init__(
        self,
        model: HrmTextModel,
        device: torch.device,
        efforts: DepthsByEffort | None = None,
    ) -> None:
        shape = model.shape
        self.model = model
        self.device = device
        # Of a parameter that is never replaced.
        self.dtype = model.model.z_L_init.dtype
        self.kv_shape = KVShape(
            shape.num_kv_slots, num_heads=shape.num_heads, head_dim=shape.head_dim
        )
        self.layers = Layers(shape.num_kv_slots, self._begin, self._advance)
        if efforts is None:
            efforts = spread(
                shape.l_cycles, lambda count: Depth(cycles=f"{shape.h_cycles}x{count}")
            )
        own = Depth(cycles=f"{shape.h_cycles}x{shape.l_cycles}")
        self.depths = Depths(own, efforts, self._net_at)
        self._scale = shape.head_dim**-0.5

    def hidden(self, ids: Tensor, plan: AttentionPlan, store: KVStore | None) -> Tensor:
        return self._forward(ids, plan, store, passes=None)

    def draft_with(self, num_passes: int, max_tokens: int) -> None:
        """Draft up to `max_tokens` tokens a step by `num_passes` L passes from now on.

        Do nothing for a network that has no more passes, or layers in which a row depends on the
        others.
        """
        shape = self.model.shape
        has_more = num_passes < shape.h_cycles * shape.l_cycles
        if not has_more or not keeps_rows_apart(self.model):
            return
        passes = passes_of(shape, num_passes)
        cost = len(passes) / len(all_passes(shape))
        self.draft = Draft(partial(self._forward, passes=passes), cost, max_tokens)

    def _net_at(self, depth: Depth) -> "HrmTextNet":
        if depth.cycles is None:
            raise InvalidRequest(
                "max_steps: this model has H and L cycles; expected `cycles`.", field="max_steps"
            )
        shallow = self.model.with_cycles(*_counts(depth.cycles))
        # Each pass through a layer has a slot of keys and values, and they are counted at the start.
        slots = self.model.shape.num_kv_slots
        if shallow.shape.num_kv_slots > slots:
            passes = shallow.shape.num_kv_slots // shallow.shape.num_layers
            problem = (
                f"cycles: {depth.cycles} are {passes} passes through a stack; this model runs "
                f"{self.depths.own.cycles}, which are {slots // self.model.shape.num_layers}."
            )
            raise InvalidRequest(problem, field="cycles")
        return HrmTextNet(shallow, self.device, self.depths.efforts)

    def _forward(
        self,
        ids: Tensor,
        plan: AttentionPlan,
        store: KVStore | None,
        *,
        passes: Passes | None,
    ) -> Tensor:
        state = self.model.begin(ids, plan.positions)
        return self._advanced(state, plan, store, passes=passes).z_h

    def _begin(self, ids: Tensor, plan: AttentionPlan) -> Forward:
        return _forward_of(self.model.begin(ids, plan.positions))

    def _advance(
        self, forward: Forward, plan: AttentionPlan, store: KVStore | None, num_layers: int
    ) -> Forward:
        hidden, z_h, z_l, cos, sin = forward.states
        state = HrmTextState(hidden, z_h, z_l, (cos, sin), num_layers=forward.num_layers)
        return _forward_of(self._advanced(state, plan, store, num_layers))

    def _advanced(
        self,
        state: HrmTextState,
        plan: AttentionPlan,
        store: KVStore | None,
        num_layers: int | None = None,
        *,
        passes: Passes | None = None,
    ) -> HrmTextState:
        num_heads = self.model.shape.num_heads
        step = layers_step(plan, store, state.rope, num_heads=num_heads, scale=self._scale)
        attend_slot = self._attend_slot(plan, store)
        return self.model.advance(state, attend_slot, num_layers, passes=passes, step=step)

    def _attend_slot(self, plan: AttentionPlan, store: KVStore | None) -> Attend:
        """Return the attention of a step, whose first argument is the slot."""

        def attend_slot(slot: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attend(plan, store, slot, query=query, key=key, value=value, scale=self._scale)

        return attend_slot

    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.logits(hidden)


def _counts(cycles: str) -> tuple[int, int]:
    """Return the numbers of H and L cycles of a text such as 2x3."""
    h_cycles, l_cycles = cycles.split("x")
    return int(h_cycles), int(l_cycles)


def _forward_of(state: HrmTextState) -> Forward:
    return Forward((state.hidden, state.z_h, state.z_l, *state.rope), state.num_layers)


def load(options: RunnerOptions) -> PagedRunner:
    """Load the model and its tokenizer. Raise ModelFormatError for files that cannot be served."""
    declared = options.declared(HrmTextOptions)
    path = Path(options.path)
    model, marks, models_tokenizer, note = _read(path, options)
    if declared.cycles is not None:
        model = model.with_cycles(*_counts(declared.cycles))
    tokenizer_path = options.tokenizer_path or models_tokenizer
    if tokenizer_path is None:
        raise ModelFormatError(
            f"{options.path} names no tokenizer on this machine: give one with --tokenizer-path."
        )

    tokenizer = load_tokenizer(Path(tokenizer_path))
    language = HrmTextLanguage(
        tokenizer,
        model.shape.vocab_size,
        condition=declared.condition,
        marks=marks,
        chat_template=declared.chat_template,
        ends=_declared_ends(path) if marks is None else frozenset(),
    )
    if language.note:
        logger.warning("prompts read raw", extra=fields(model=options.name, reason=language.note))
        note += f", {language.note}"

    device = torch.device(options.device)
    net = HrmTextNet(model.to(device), device, declared.depths_by_effort)
    # The order matters, because `prepare` replaces layers: parameters are counted before it, and
    # the layers that are left are packed, and the new ones compiled, after it.
    description = _describe(model, note)
    prepare(model, options)
    if declared.draft_tokens > 0:
        pack_all_linears(model)
        net.draft_with(declared.draft_cycles, declared.draft_tokens)
    model.join_layers()
    weights = weight_size(model)
    if device.type == "cuda" and declared.compile_layers:
        compile_net(net, options.name)
    window = min(options.context_window or model.shape.max_positions, model.shape.max_positions)
    return PagedRunner(
        "hrm-text",
        description,
        net=net,
        language=language,
        window=window,
        options=options,
        weights=weights,
    )


@torch.inference_mode()
def compile_net(net: HrmTextNet, name: str) -> None:
    """Compile the layers and try a forward of a few tokens.

    If it fails, log why and restore the plain layers.
    """
    plain = net.model.halves
    net.model.compile_layers()
    try:
        for count in (2, 1):
            ids = torch.arange(count, device=net.device)
            span = Span(0, count, ids[None], has_fresh=True)
            plan = AttentionPlan(positions=ids, first_ids=ids, spans=(span,))
            net.hidden(ids, plan, None)
    except RuntimeError as error:
        net.model.halves = plain
        logger.warning("layers not compiled", extra=fields(model=name, error=str(error)))


def _read(
    path: Path, options: RunnerOptions
) -> tuple[HrmTextModel, PromptMarks | None, Path | None, str]:
    """Return the model, marks, tokenizer path and description of an export or a raw checkpoint."""
    dtype = getattr(torch, options.dtype)
    path = directory_of(path)
    if is_there(path / CONFIG):
        return load_model(path, dtype), None, path, options.precision

    # Imported here, because it takes a second that exports need not wait for.
    from worker.models.hrm_text_checkpoint import load_checkpoint

    raw = load_checkpoint(path, dtype, use_ema=options.declared(HrmTextOptions).use_ema)
    return raw.model, raw.marks, raw.tokenizer_path, f"{options.precision}, {raw.note}"


def load_model(path: Path, dtype: torch.dtype = torch.float32) -> HrmTextModel:
    """Return the model of a Hugging Face directory.

    Raise ModelFormatError when weights and config do not match.
    """
    declared = check_directory(path)
    weights = read_safetensors_dir(path)
    config = converted(declared, _ExportConfig, path / CONFIG)
    return build_model(_shape(config, weights, path), weights, path, dtype)


def _shape(config: _ExportConfig, weights: dict[str, Tensor], path: Path) -> HrmTextShape:
    vocab_size, hidden = matrix_shape(weights, "model.embed_tokens.weight", path)
    _, intermediate = matrix_shape(weights, "model.L_module.layers.0.mlp.down_proj.weight", path)
    _, width = matrix_shape(weights, "model.L_module.layers.0.attn.o_proj.weight", path)
    layers = {name.split(".")[3] for name in weights if name.startswith("model.L_module.layers.")}
    rope = config.rope_parameters or _Rope()
    return HrmTextShape(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_heads=config.num_attention_heads,
        head_dim=width // config.num_attention_heads,
        num_layers=len(layers),
        h_cycles=config.h_cycles,
        l_cycles=config.l_cycles,
        embedding_scale=_embedding_scale(config, path),
        max_positions=config.max_position_embeddings,
        rope_theta=rope.rope_theta or config.rope_theta,
        norm_eps=config.rms_norm_eps,
    )


def _embedding_scale(config: _ExportConfig, path: Path) -> float:
    if config.embedding_scale is not None:
        return config.embedding_scale
    if config.initializer_range is None:
        problem = f"{path / CONFIG} has neither embedding_scale nor initializer_range"
        raise ModelFormatError(f"{problem}; correct it from the training's configuration.")
    return 1.0 / config.initializer_range


def _describe(model: HrmTextModel, note: str) -> str:
    shape = model.shape
    count = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"HRM-Text: {count / 1e6:.1f} M parameters, hidden {shape.hidden_size}, {shape.num_layers} "
        f"layers a stack, cycles {shape.h_cycles} x {shape.l_cycles}, vocabulary "
        f"{shape.vocab_size}, {note}"
    )


def _marks_of_export(tokenizer: PreTrainedTokenizerBase) -> PromptMarks:
    """Return the marks of an export.

    An export has no mapping of conditions, so all known conditions are offered whose tokens the
    tokenizer has.
    """
    vocabulary = tokenizer.get_vocab()
    offered = {name: token for name, token in CONDITIONS.items() if token in vocabulary}
    return PromptMarks(
        boq=tokenizer.bos_token or "<|im_start|>",
        eoq="<|im_end|>",
        eoa=tokenizer.eos_token or "<|box_end|>",
        conditions=offered,
    )


def _frame_of(
    marks: PromptMarks, tokenizer: PreTrainedTokenizerBase, *, is_export: bool
) -> tuple[_Frame | None, str]:
    """Return the tokens around a prompt and "", or None and why prompts are read raw.

    A raw checkpoint was trained with the marks that it names. Raise ModelFormatError for a
    tokenizer without them, because it is not that of the training.
    """
    vocabulary = tokenizer.get_vocab()
    lacking = [mark for mark in (marks.boq, marks.eoq) if mark not in vocabulary]
    if lacking and is_export:
        missing = " and no ".join(lacking)
        return None, f"prompts read raw, without conditions: the tokenizer has no {missing}"

    conditions = {name: _required_id(tokenizer, token) for name, token in marks.conditions.items()}
    frame = _Frame(
        boq=_required_id(tokenizer, marks.boq),
        eoq=_required_id(tokenizer, marks.eoq),
        conditions=conditions,
    )
    return frame, ""


def _end_of(
    marks: PromptMarks, tokenizer: PreTrainedTokenizerBase, *, is_export: bool
) -> frozenset[int]:
    """Return the id of eoa, or no id, because the tokenizer of an export may lack it."""
    if is_export and marks.eoa not in tokenizer.get_vocab():
        return frozenset()
    return frozenset({_required_id(tokenizer, marks.eoa)})


def _declared_ends(path: Path) -> frozenset[int]:
    """Return the ids that end a response, by an export's own files.

    They are those of `generation_config.json`, or else of `config.json`.
    """
    path = directory_of(path)
    declared = read_generation_defaults(path).eos_token_id
    if declared is None:
        config = converted(read_json_object(path / CONFIG), _EndConfig, path / CONFIG)
        declared = config.eos_token_id
    if declared is None:
        return frozenset()
    if isinstance(declared, list):
        return frozenset(declared)
    return frozenset({declared})


def _required_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Return the token's id. Raise ModelFormatError where the tokenizer lacks it."""
    token_id = tokenizer.get_vocab().get(token)
    if token_id is None:
        problem = f"The tokenizer has no {token!r}, which the HRM-Text prompt format needs"
        raise ModelFormatError(f"{problem}; name the one of its training with --tokenizer-path.")
    return int(token_id)
