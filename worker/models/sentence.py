"""sentence-transformers directories: modules that make one vector of a text's states.

    modules.json                      the modules behind the network, in order
    1_Pooling/config.json             the modes of pooling, whose vectors are joined
    2_Dense/, 2_Normalize/            the steps that change the joined vector
    config_sentence_transformers.json prompts, and the one that stands before every text
    sentence_bert_config.json         the length of the longest text

Formats and rules are those of sentence-transformers 6.2. An unknown module or option is refused by
name, never left out.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.models.errors import ModelFormatError
from worker.models.hf_directory import SENTENCE_CONFIG, is_sentence_directory, is_there
from worker.models.reading import Count, converted, read_json, read_json_object
from worker.models.weights import check_names, read_tensors

_POOLING = "Pooling"
_KINDS = ("Dense", "Normalize")
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The mode of pooling for each flag of the older format, in the order in which they are joined."""
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "Identity": nn.Identity,
    "Tanh": nn.Tanh,
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
    "Sigmoid": nn.Sigmoid,
}
_LAST_STATES = (None, "last_hidden_state")
_VECTOR = "sentence_embedding"


class _Module(msgspec.Struct):
    """An entry of `modules.json`. `type` is a Python path that ends in the module's class."""

    type: str
    path: str = ""


class _Dense(msgspec.Struct):
    """`config.json` of a Dense module."""

    in_features: Count
    out_features: Count
    bias: bool = True
    activation_function: str = "torch.nn.modules.activation.Tanh"
    module_input_name: str = _VECTOR
    module_output_name: str | None = None
    use_residual: bool = False


class _Limits(msgspec.Struct):
    """`sentence_bert_config.json`."""

    max_seq_length: Count | None = None
    do_lower_case: bool = False
    modality_config: dict[str, Any] | None = None


class _Prompts(msgspec.Struct):
    """`config_sentence_transformers.json`."""

    prompts: dict[str, str] = {}
    default_prompt_name: str | None = None


@dataclass(frozen=True)
class SentenceModules:
    """Modules behind a network, which make one vector of a text.

    The vectors of all `modes` of pooling are joined, and `steps` change the result, in order.
    `prompt` stands before every text. Without `includes_prompt` its tokens are read but not pooled.
    A text has at most `max_tokens` tokens; None sets no limit but the network's. `description` is
    for people.
    """

    modes: tuple[str, ...]
    steps: tuple[nn.Module, ...]
    includes_prompt: bool
    prompt: str
    is_lower_case: bool
    max_tokens: int | None
    description: str = field(default="")

    def vector(self, states: Tensor, num_unpooled: int) -> Tensor:
        """Return one vector in float32 of last states [N, hidden].

        The first `num_unpooled` states take no part.
        """
        parts = [_pooled(states.double(), mode, num_unpooled) for mode in self.modes]
        vector = torch.cat(parts).float()
        for step in self.steps:
            vector = step(vector)
        return vector

    def text(self, text: str) -> str:
        """Return `text` as the network reads it: with the prompt, in lower case if need be."""
        whole = self.prompt + text
        if self.is_lower_case:
            return whole.lower()
        return whole


class _Normalize(nn.Module):
    def forward(self, vector: Tensor) -> Tensor:
        return F.normalize(vector, dim=-1)


class _DenseStep(nn.Module):
    """A Dense module: activation(linear(vector)), with a residual if the config has one."""

    def __init__(self, config: _Dense, activation: nn.Module) -> None:
        super().__init__()
        self.linear = nn.Linear(config.in_features, config.out_features, bias=config.bias)
        self.activation = activation
        self.has_residual = config.use_residual
        if config.use_residual and config.in_features != config.out_features:
            self.residual: nn.Module = nn.Linear(
                config.in_features, config.out_features, bias=False
            )
        else:
            self.residual = nn.Identity()

    def forward(self, vector: Tensor) -> Tensor:
        out: Tensor = self.activation(self.linear(vector))
        if self.has_residual:
            out = out + self.residual(vector)
        return out


def read_sentence_modules(path: Path, hidden_size: int) -> SentenceModules | None:
    """Return the modules of a directory, None for one that sentence-transformers did not write.

    `hidden_size` is that of the network's states. Raise ModelFormatError for files that are damaged
    or that name unknown modules.
    """
    if not is_sentence_directory(path):
        return None
    names = {entry.name for entry in path.iterdir()}
    network, *others = _modules(path, names)
    limits = _limits(path / network.path)
    if not others or _kind(others[0]) != _POOLING:
        kinds = ", ".join(_kind(module) for module in others) or "nothing"
        raise ModelFormatError(
            f"{path / 'modules.json'} has {kinds} behind the network; serve one with Pooling first."
        )

    pooling, *others = others
    modes, includes_prompt = _pooling(path / pooling.path / "config.json", hidden_size)
    words = ["pooled by " + " + ".join(modes)]

    # Each step takes vectors of the width that the step before it returns.
    steps: list[nn.Module] = []
    width = hidden_size * len(modes)
    for module in others:
        step, width, step_words = _step(path / module.path, _kind(module), width)
        steps.append(step)
        words.append(step_words)

    prompt, prompt_words = _prompt(path)
    words += prompt_words
    if limits.max_seq_length is not None:
        words.append(f"texts of at most {limits.max_seq_length} tokens")
    if limits.do_lower_case:
        words.append("in lower case")
    return SentenceModules(
        modes=modes,
        steps=tuple(steps),
        includes_prompt=includes_prompt,
        prompt=prompt,
        is_lower_case=limits.do_lower_case,
        max_tokens=limits.max_seq_length,
        description=", ".join(words),
    )


def _modules(path: Path, names: set[str]) -> list[_Module]:
    """Return the modules in order.

    They are those of `modules.json`, or else of directories with names such as `1_Pooling`.
    """
    if "modules.json" in names:
        file = path / "modules.json"
        modules = converted(read_json(file), list[_Module], file)
        if not modules or _kind(modules[0]) != "Transformer" or modules[0].path:
            raise ModelFormatError(
                f"{file} does not begin with the network in this directory; serve another model."
            )
        return modules

    numbered = []
    for name in names:
        number, _, kind = name.partition("_")
        if number.isdigit():
            numbered.append((int(number), kind, name))
    numbered.sort(key=lambda entry: entry[0])

    modules = [_Module("Transformer")]
    for _, kind, name in numbered:
        modules.append(_Module(kind, name))
    return modules


def _kind(module: _Module) -> str:
    return module.type.rpartition(".")[2]


def _limits(directory: Path) -> _Limits:
    """Return the limits of texts.

    Raise ModelFormatError where anything but the network's last states is pooled.
    """
    file = directory / "sentence_bert_config.json"
    if not is_there(file):
        return _Limits()
    limits = converted(read_json_object(file), _Limits, file)
    text = (limits.modality_config or {}).get("text")
    output = text.get("method_output_name") if isinstance(text, dict) else None
    if output not in _LAST_STATES:
        raise ModelFormatError(
            f"{file} asks for {output!r} of the network, not its last states; serve another model."
        )
    return limits


def _pooling(file: Path, hidden_size: int) -> tuple[tuple[str, ...], bool]:
    """Return the modes of pooling, and whether a prompt's tokens take part."""
    config = read_json_object(file)
    declared = config.get("pooling_mode")
    if declared is None:
        modes = [mode for flag, mode in _FLAGS.items() if config.get(flag)]
        modes = modes or ["mean"]
    elif isinstance(declared, list):
        modes = declared
    else:
        modes = [declared]
    unknown = [mode for mode in modes if mode not in _FLAGS.values()]
    if unknown or not modes:
        raise ModelFormatError(
            f"{file} asks for the pooling {unknown or modes}, which is not known; correct it."
        )
    width = config.get("embedding_dimension", config.get("word_embedding_dimension", hidden_size))
    if width != hidden_size:
        raise ModelFormatError(
            f"{file} is for states {width} wide, the network's have {hidden_size}; copy both again."
        )
    return tuple(modes), bool(config.get("include_prompt", True))


def _step(directory: Path, kind: str, width: int) -> tuple[nn.Module, int, str]:
    """Return a module behind pooling, the width of its vector, and words for people."""
    if kind == "Normalize":
        return _Normalize(), width, "of length 1"
    if kind != "Dense":
        raise ModelFormatError(
            f"{directory} is a {kind}, and only {', '.join(_KINDS)} are served; serve "
            "another model."
        )
    file = directory / "config.json"
    config = converted(read_json_object(file), _Dense, file)
    name = config.activation_function.rpartition(".")[2]
    is_of_torch = config.activation_function.startswith("torch.nn.")
    if not is_of_torch or name not in _ACTIVATIONS:
        problem = f"{file} asks for the activation {config.activation_function!r}"
        raise ModelFormatError(f"{problem}, which is not known; serve another model.")
    output_name = config.module_output_name or _VECTOR
    if config.module_input_name != _VECTOR or output_name != _VECTOR:
        raise ModelFormatError(f"{file} is not for the vector of a sentence; serve another model.")
    if config.in_features != width:
        raise ModelFormatError(
            f"{file} takes {config.in_features} numbers where {width} come; copy it again."
        )
    step = _DenseStep(config, _ACTIVATIONS[name]())
    weights = directory / "model.safetensors"
    if not is_there(weights):
        weights = directory / "pytorch_model.bin"
    tensors = read_tensors(weights)
    check_names(step.state_dict(), tensors, directory)
    step.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    words = f"dense {config.in_features} to {config.out_features} ({name})"
    return step.eval().requires_grad_(False), config.out_features, words


def _prompt(path: Path) -> tuple[str, list[str]]:
    """Return the prompt that stands before every text, and words for people."""
    file = path / SENTENCE_CONFIG
    if not is_there(file):
        return "", []
    config = converted(read_json_object(file), _Prompts, file)
    default = config.default_prompt_name
    if default is None:
        # Without a default, callers choose a prompt and write it themselves.
        names = [name for name, prompt in config.prompts.items() if prompt]
        if not names:
            return "", []
        return "", [f"prompts ({', '.join(names)}) left to callers"]
    if default not in config.prompts:
        raise ModelFormatError(
            f"{file} has no prompt {default!r}, its default_prompt_name; correct it."
        )
    return config.prompts[default], [f"prompt {config.prompts[default]!r} before every text"]


def _pooled(states: Tensor, mode: str, num_unpooled: int) -> Tensor:
    """Return the vector [hidden] of the states [N, hidden] behind the first `num_unpooled`."""
    kept = states[num_unpooled:]
    if mode == "cls":
        return kept[0]
    if mode == "lasttoken":
        return kept[-1]
    if mode == "max":
        return kept.max(dim=0).values
    if mode == "weightedmean":
        # The weight of a token is its position in the whole text, counted from 1.
        weights = torch.arange(
            num_unpooled + 1, len(states) + 1, dtype=states.dtype, device=states.device
        )
        return (kept * weights[:, None]).sum(dim=0) / weights.sum()
    divisor = len(kept) if mode == "mean" else len(kept) ** 0.5
    return kept.sum(dim=0) / divisor
