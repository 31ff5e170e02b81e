"""Any Hugging Face causal LM, unmodified, through transformers' attention interface over our pages.

The network's own code runs; only its attention function is ours. On loading it is watched and
compared with itself (`causal_check`): a mechanism that our attention does not cover is refused,
never served wrong.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from shared.errors import InvalidRequest
from shared.messages import Detokenize, Embed, Generate, Read, Score, Text, Tokenize
from shared.runner_options import PagedOptions
from worker.accelerators import prepare
from worker.chat import ChatTemplate
from worker.models.errors import ModelFormatError
from worker.models.hf_directory import directory_of, read_generation_defaults
from worker.models.q_head import QHead, find_implant, load_q_head
from worker.models.reading import reading, reason_of
from worker.models.weights import NO_NETWORK, load_tokenizer, read_config, start_ids
from worker.rolling import encode_rolling
from worker.runners.base import (
    RunnerOptions,
    TextTask,
    encode_generate,
    encode_read,
    encode_score,
    known_ids,
)
from worker.runners.causal_check import (
    check_against_own_forward,
    check_rows,
    kv_shape,
    own_logits,
    refuse_by_config,
)
from worker.runners.causal_net import CausalNet
from worker.runners.paged import PagedRunner
from worker.sequence import Encoded
from worker.vocabulary import Ids, Vocabulary


class CausalLanguage:
    """Prompts behind the tokenizer's own special tokens; a continuation's ids are those behind its
    context's.

    Scoring tokenizes as lm-evaluation-harness does: spaces at a context's end belong to the
    continuation, and both together are cut where the context alone would end. Marks that the
    tokenizer puts behind a text are no part of it.
    """

    def __init__(self, vocabulary: Vocabulary, start: Ids, eos_ids: frozenset[int]) -> None:
        self._vocabulary = vocabulary
        self._start = start
        self.eos_ids = eos_ids

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
            return encode_read(vocabulary.prompt(task.prompt, "prompt"), 1, task, window)
        return self._encode_score(task, window)

    def _encode_score(self, task: Score, window: int) -> Encoded:
        if task.method == "aios_compat":
            raise InvalidRequest(
                "`aios_compat` scoring is for ACTv1 brains; `strict` is expected.", field="scoring"
            )
        if task.rolling:
            start = self._vocabulary.known(self._start or self._vocabulary.start_marks, "prompts")
            return encode_rolling(start, self._plain(task.continuations[0], "prompts"), window)
        text = task.context.rstrip() if isinstance(task.context, str) else task.context
        opened = self._open(text, "prompts")
        continuations = [
            self._continuation(task.context, len(opened), item) for item in task.continuations
        ]
        context = opened or self._vocabulary.known(self._start, "prompts")
        return encode_score(context, continuations, window)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._vocabulary.decode(token_ids)

    def _continuation(self, context: Text, num_before: int, text: Text) -> tuple[int, ...]:
        """`context` as it was given; without the spaces at its end it has `num_before` tokens,
        perhaps none at all."""
        if not isinstance(context, str) or not isinstance(text, str):
            return self._plain(text, "continuations")
        if not context.strip():
            return self._plain(context + text, "continuations")
        behind = self._open(context + text, "continuations")[num_before:]
        return behind or self._plain(
            text, "continuations"
        )  # the context may swallow a continuation

    def _open(self, text: Text, field: str) -> tuple[int, ...]:
        return self._vocabulary.open_ids(text, field)

    def _plain(self, text: Text, field: str) -> tuple[int, ...]:
        return self._vocabulary.ids(text, field, special=False)


def load(options: RunnerOptions) -> PagedRunner:
    """Raises ModelFormatError for weights that do not match and for mechanisms that our attention
    does not cover."""
    implant = find_implant(Path(options.path))
    path = implant.base if implant else directory_of(Path(options.path))
    config = read_config(path)
    generation = read_generation_defaults(path)
    refuse_by_config(config)
    text_config, device = config.get_text_config(), torch.device(options.device)
    q_head = load_q_head(implant.q_head, text_config.hidden_size).to(device) if implant else None
    model = nn.Module.to(_load_model(path, getattr(torch, options.dtype)), device)
    tokenizer = load_tokenizer(Path(options.tokenizer_path) if options.tokenizer_path else path)
    longest = _longest(
        text_config, options.context_window, implant.max_seq_len if implant else None
    )
    net = checked_net(model, longest, device, q_head)
    template = ChatTemplate(tokenizer, options.declared(PagedOptions).chat_template)
    vocabulary = Vocabulary(tokenizer, text_config.vocab_size, template)
    eos_ids = known_ids(_eos_ids(model, generation.eos_token_id, tokenizer), vocabulary.size)
    language = CausalLanguage(vocabulary, start_ids(tokenizer), eos_ids)
    count = model.num_parameters() / 1e6
    found = f"{type(model).__name__}: {count:.1f} M parameters, vocabulary {text_config.vocab_size}"
    found += f", {options.precision}" + (f", q head {implant.q_head.name}" if implant else "")
    prepare(model, options)
    return PagedRunner("causal", found, net, language, longest, options)


def _load_model(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    with reading(path, NO_NETWORK, kind="a causal language model"):
        loading: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are told of by name below
            attn_implementation="eager",
        )
    model, info = loading
    unmatched = {
        key: sorted(map(str, info[key]))
        for key in ("mismatched_keys", "missing_keys", "unexpected_keys")
    }
    problems = [
        f"{key.replace('_', ' ')} {', '.join(names[:5])}"
        for key, names in unmatched.items()
        if names
    ]
    if problems:
        problem = (
            f"The weights in {path} do not match the model of config.json: {'; '.join(problems)}"
        )
        raise ModelFormatError(f"{problem}; copy both again.")
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        problem = f"{type(model).__name__} takes no position ids and cannot be served from pages"
        raise ModelFormatError(f"{problem}; serve another model.")
    loaded: PreTrainedModel = model.requires_grad_(False).eval()
    return loaded


def checked_net(
    model: PreTrainedModel, longest: int, device: torch.device, q_head: QHead | None = None
) -> CausalNet:
    """The network behind our attention, or ModelFormatError where that does not do what its own
    does."""
    model.config.get_text_config().output_router_logits = (
        False  # for a training loss, which nobody asks for here
    )
    rows = check_rows(model.config, longest)
    try:
        own = own_logits(model, rows)
        if not all(torch.isfinite(logits).all() for logits in own):
            raise ModelFormatError(
                "The network's logits are not finite: its weights are broken; copy them again."
            )
        net = CausalNet(model, kv_shape(model, longest), device, q_head)
        check_against_own_forward(net, own, rows)
    except ModelFormatError:
        raise
    except (
        Exception
    ) as error:  # the seam to foreign code: a network may stumble over anything of ours
        problem = f"{type(model).__name__} does not run through our pages: {reason_of(error)}"
        raise ModelFormatError(f"{problem}; serve another model.") from error
    return net


def _longest(config: PretrainedConfig, *wanted: int | None) -> int:
    """The context window: the least of what is wanted, as far as the network goes.

    A rope that changes its frequencies with the longest row of the batch (`longrope`) goes as far
    as the first ones do: beyond, a row would depend on its batch mates, and its stored keys on when
    they were computed.
    """
    limits = [*wanted, getattr(config, "max_position_embeddings", None)]
    rope = getattr(config, "rope_parameters", None) or {}
    for item in (rope, *rope.values()):
        if isinstance(item, dict) and item.get("rope_type") == "longrope":
            limits.append(item.get("original_max_position_embeddings"))
    known = [limit for limit in limits if limit is not None]
    if not known:
        raise ModelFormatError("The config names no longest sequence: give a context_window.")
    return min(known)


def _eos_ids(
    model: PreTrainedModel, generation: int | list[int] | None, tokenizer: PreTrainedTokenizerBase
) -> frozenset[int]:
    """Every id that ends a response, by generation config, else by config, and by tokenizer; there
    may be none."""
    declared = generation if generation is not None else model.config.get_text_config().eos_token_id
    listed = declared if isinstance(declared, list) else [declared]
    return frozenset(int(item) for item in [*listed, tokenizer.eos_token_id] if item is not None)
