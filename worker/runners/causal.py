"""Any Hugging Face causal LM, unmodified, through transformers' attention interface over our pages.

The network's own code runs, and only its attention function is ours. On loading, the network is
watched and compared with its own attention (`causal_check`). A mechanism that our attention does
not cover is refused, never served wrong.
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
from shared.tasks.runner_options import PagedOptions
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Encoded
from worker.models.errors import ModelFormatError
from worker.models.fused_layers import fuse_layers
from worker.models.hf_directory import directory_of, read_generation_defaults
from worker.models.q_head import QHead, find_implant, load_q_head
from worker.models.reading import reading, reason_of
from worker.models.weight_size import weight_size
from worker.models.weights import NO_NETWORK, load_tokenizer, read_config, start_ids
from worker.runners.accelerators import prepare
from worker.runners.causal_check import (
    check_against_own_forward,
    check_rows,
    kv_shape,
    own_logits,
    refuse_by_config,
)
from worker.runners.causal_net import CausalNet
from worker.runners.paged import PagedRunner
from worker.text.chat import ChatTemplate
from worker.text.encoding import TextTask, encode_generate, encode_read, encode_score, known_ids
from worker.text.rolling import encode_rolling
from worker.text.vocabulary import Ids, Vocabulary

NO_CONDITIONS = "This model knows no conditions; leave `condition` out."


class CausalLanguage:
    """Text of causal LMs: prompts begin with the tokenizer's own special tokens.

    Scoring tokenizes as lm-evaluation-harness does. Spaces at a context's end belong to the
    continuation. Both are tokenized together, and the continuation begins behind as many tokens as
    the context alone has. Special tokens that the tokenizer puts behind a text are left out.
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
            raise InvalidRequest(NO_CONDITIONS, field="condition")
        if isinstance(task, Generate):
            ids = vocabulary.prompt(task.prompt, "prompt")
            return encode_generate(ids, task, window, vocab_size=vocabulary.size)
        if isinstance(task, Read):
            ids = vocabulary.prompt(task.prompt, "prompt")
            return encode_read(ids, num_seen=1, task=task, window=window)
        return self._encode_score(task, window)

    def _encode_score(self, task: Score, window: int) -> Encoded:
        if task.method == "aios_compat":
            raise InvalidRequest(
                "`aios_compat` scoring is for ACTv1 brains; `strict` is expected.", field="scoring"
            )
        if task.rolling:
            start = self._vocabulary.known(self._start or self._vocabulary.start_marks, "prompts")
            return encode_rolling(start, self._plain(task.continuations[0], "prompts"), window)

        stripped = task.context
        if isinstance(stripped, str):
            stripped = stripped.rstrip()
        context = self._open(stripped, "prompts")
        continuations = [
            self._continuation(task.context, len(context), continuation)
            for continuation in task.continuations
        ]
        if not context:
            context = self._vocabulary.known(self._start, "prompts")
        return encode_score(context, continuations, window)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._vocabulary.decode(token_ids)

    def _continuation(self, context: Text, num_before: int, text: Text) -> tuple[int, ...]:
        """Return the ids of a continuation behind its context.

        `context` is the request's, which has `num_before` tokens without the spaces at its end.
        """
        if not isinstance(context, str) or not isinstance(text, str):
            return self._plain(text, "continuations")
        if not context.strip():
            return self._plain(context + text, "continuations")
        behind = self._open(context + text, "continuations")[num_before:]
        if behind:
            return behind
        # Both together may have no more tokens than the context alone.
        return self._plain(text, "continuations")

    def _open(self, text: Text, field: str) -> tuple[int, ...]:
        return self._vocabulary.open_ids(text, field)

    def _plain(self, text: Text, field: str) -> tuple[int, ...]:
        return self._vocabulary.ids(text, field, special=False)


def load(options: RunnerOptions) -> PagedRunner:
    """Load the model, its tokenizer and, for an implant, its q head.

    Raise ModelFormatError for weights that do not match, and for mechanisms that our attention does
    not cover.
    """
    device = torch.device(options.device)
    implant = find_implant(Path(options.path))
    path = directory_of(Path(options.path))
    if implant is not None:
        path = implant.base
    config = read_config(path)
    generation = read_generation_defaults(path)
    refuse_by_config(config)
    text_config = config.get_text_config()

    q_head = None
    max_seq_len = None
    if implant is not None:
        q_head = load_q_head(implant.q_head, text_config.hidden_size).to(device)
        max_seq_len = implant.max_seq_len
    model = nn.Module.to(_load_model(path, getattr(torch, options.dtype)), device)
    tokenizer = load_tokenizer(Path(options.tokenizer_path or path))
    longest = longest_of(text_config, options.context_window, max_seq_len)
    net = checked_net(model, longest, device, q_head)

    template = ChatTemplate(tokenizer, options.declared(PagedOptions).chat_template)
    vocabulary = Vocabulary(tokenizer, text_config.vocab_size, template)
    eos_ids = known_ids(eos_ids_of(model, generation.eos_token_id, tokenizer), vocabulary.size)
    language = CausalLanguage(vocabulary, start_ids(tokenizer), eos_ids)

    count = model.num_parameters() / 1e6
    description = f"{type(model).__name__}: {count:.1f} M parameters"
    description += f", vocabulary {text_config.vocab_size}, {options.precision}"
    if implant is not None:
        description += f", q head {implant.q_head.name}"
    # Last, because it replaces layers in place: the checks and the count of parameters need the
    # original ones.
    prepare(model, options)
    net.join_layers()
    return PagedRunner(
        "causal",
        description,
        net=net,
        language=language,
        window=longest,
        options=options,
        weights=weight_size(model),
    )


def _load_model(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load the network. Raise ModelFormatError, which names the tensors that do not match."""
    with reading(path, NO_NETWORK, kind="a causal language model"):
        loading: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that the error below can name them
            attn_implementation="eager",
        )
    model, info = loading
    problems = []
    for key in ("mismatched_keys", "missing_keys", "unexpected_keys"):
        names = sorted(str(name) for name in info[key])
        if names:
            problems.append(f"{key.replace('_', ' ')} {', '.join(names[:5])}")
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
    """Return the network with our attention.

    Raise ModelFormatError where its results differ from those with its own attention.
    """
    # Router logits are for a training loss, which is never computed here.
    model.config.get_text_config().output_router_logits = False
    rows = check_rows(model.config, longest)
    # A network is foreign code: it may raise any error when it runs with our attention.
    try:
        expected = own_logits(model, rows)
        if not all(torch.isfinite(logits).all() for logits in expected):
            raise ModelFormatError(
                "The network's logits are not finite: its weights are broken; copy them again."
            )
        # In between, so that the check covers the replacements, too.
        fuse_layers(model)
        net = CausalNet(model, kv_shape(model, longest), device, q_head)
        check_against_own_forward(net, expected, rows)
    except ModelFormatError:
        raise
    except Exception as error:
        problem = f"{type(model).__name__} does not run through our pages: {reason_of(error)}"
        raise ModelFormatError(f"{problem}; serve another model.") from error
    return net


def longest_of(config: PretrainedConfig, *requested: int | None) -> int:
    """Return the context window: the least of `requested` and of the network's own limits."""
    limits = [*requested, getattr(config, "max_position_embeddings", None)]

    # A `longrope` changes its frequencies when the longest row of the batch exceeds the original
    # length. Beyond that length a row would depend on other rows, and its stored keys on the time
    # of their computation. A config has one rope, or one for each type of layer.
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in (rope, *rope.values()):
        if isinstance(parameters, dict) and parameters.get("rope_type") == "longrope":
            limits.append(parameters.get("original_max_position_embeddings"))

    known = [limit for limit in limits if limit is not None]
    if not known:
        raise ModelFormatError("The config names no maximum length: set context_window.")
    return min(known)


def eos_ids_of(
    model: PreTrainedModel, generation: int | list[int] | None, tokenizer: PreTrainedTokenizerBase
) -> frozenset[int]:
    """Return all ids that end a response. There may be none.

    They are those of the generation config, or else of the config, and the tokenizer's.
    """
    declared = generation
    if declared is None:
        declared = model.config.get_text_config().eos_token_id
    ids = declared if isinstance(declared, list) else [declared]
    ids = [*ids, tokenizer.eos_token_id]
    return frozenset(int(token) for token in ids if token is not None)
