"""The configuration of a recurrent puzzle network, from the files beside its weights."""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor

from worker.models.errors import ModelFormatError
from worker.models.hf_directory import is_there
from worker.models.puzzle_net import Family, Positions, PuzzleNetConfig
from worker.models.reading import Count, converted, faulty, read_json_object, read_yaml
from worker.models.weights import matrix_shape

ALL_CONFIG = "all_config.yaml"
MANIFEST = "manifest.yaml"
_DATASET = "dataset.json"
_STEP = re.compile(r"step_(\d+)(?:\.pt)?")

Section = Mapping[str, Any]


@dataclass(frozen=True)
class DataSet:
    """The sizes that depend on the data a network was trained on. None is not known.

    Those that `is_declared` come from a file that says so, others from the tensors alone.
    """

    vocab_size: int | None = None
    seq_len: int | None = None
    is_declared: bool = False


class _DataSetFile(msgspec.Struct):
    """The fields of `dataset.json` that serving needs."""

    vocab_size: Count
    seq_len: Count


@dataclass(frozen=True)
class Source:
    """A file of weights, and what lies beside it.

    `name` is the file of the configuration, whose section `arch` is None where the weights' file
    has it. `data_path` names the data set, and may tell the puzzle.
    """

    file: Path
    name: str
    arch: Section | None
    data_path: str = ""
    data_set: DataSet = DataSet()

    @property
    def words(self) -> Set[str]:
        """Return the words in the name of the data set."""
        return set(re.split(r"[^a-z]+", Path(self.data_path).name.lower()))

    @property
    def arch_section(self) -> Section:
        assert self.arch is not None, "of_lightning was not called"
        return self.arch

    def wrong(self, problem: str) -> ModelFormatError:
        """Return the error of a configuration with this problem."""
        return ModelFormatError(f"{self.file.parent / self.name} {problem}")


def read_source(path: Path) -> Source:
    """Return the weights and the configuration at `path`, a directory or a file in it.

    Raise ModelFormatError for a configuration that is missing or no map.
    """
    directory = path if path.is_dir() else path.parent
    config_file = directory / ALL_CONFIG
    has_config = is_there(config_file)
    if is_there(directory / MANIFEST) and not has_config:
        return _of_manifest(directory / MANIFEST, path)
    file = path if path.is_file() else _latest(directory)
    if file.suffix == ".ckpt" and not has_config:
        return Source(file, file.name, arch=None, data_set=_read_data_set(directory))

    if not has_config:
        raise ModelFormatError(f"{directory} has no {ALL_CONFIG}; copy it there.")
    config = read_yaml(config_file)
    arch = config.get("arch") if isinstance(config, dict) else None
    if not isinstance(arch, dict):
        raise faulty(config_file, "has no section arch; copy it again.")
    return Source(file, ALL_CONFIG, arch, _data_path(config), _read_data_set(directory))


def _of_manifest(manifest: Path, path: Path) -> Source:
    config = read_yaml(manifest)
    arch = config.get("arch_config") if isinstance(config, dict) else None
    if not isinstance(arch, dict):
        raise faulty(manifest, "has no section arch_config; copy it again.")
    file = path
    if path.is_dir():
        name = config.get("default_checkpoint")
        if not isinstance(name, str) or Path(name).name != name:
            raise faulty(manifest, "names no default_checkpoint beside it; correct it.")
        file = path / name
    sizes = converted(config.get("dataset_meta"), _DataSetFile, manifest)
    data_set = DataSet(sizes.vocab_size, sizes.seq_len, is_declared=True)
    return Source(file, MANIFEST, arch, str(config.get("benchmark") or ""), data_set)


def _latest(directory: Path) -> Path:
    """Return the file of published models, `checkpoint`, or else that of the highest step.

    Without either it is the only Lightning file.
    """
    if (directory / "checkpoint").is_file():
        return directory / "checkpoint"
    steps = []
    for file in directory.glob("step_*"):
        match = _STEP.fullmatch(file.name)
        if match and file.is_file():
            steps.append((int(match[1]), file))
    if steps:
        _, latest = max(steps)
        return latest
    lightning = sorted(directory.glob("*.ckpt"))
    if len(lightning) == 1:
        return lightning[0]
    if lightning:
        problem = f"{directory} has {len(lightning)} files *.ckpt"
        raise ModelFormatError(f"{problem}; serve one of them by its own path.")
    problem = f"{directory} has neither a file named checkpoint nor one named step_<number>"
    raise ModelFormatError(f"{problem}; copy one there.")


def _data_path(config: Section) -> str:
    """Return the path of the data set: HRM and URM have one path, TRM has a list."""
    paths = config.get("data_paths")
    if isinstance(paths, list) and paths:
        return str(paths[0])
    return str(config.get("data_path") or "")


def _read_data_set(directory: Path) -> DataSet:
    file = directory / _DATASET
    if not is_there(file):
        return DataSet()
    sizes = converted(read_json_object(file), _DataSetFile, file)
    return DataSet(sizes.vocab_size, sizes.seq_len, is_declared=True)


def of_lightning(source: Source, settings: Section) -> Source:
    """Return a source with the configuration that nano-trm's Lightning file has in it.

    Raise ModelFormatError for a network that is not the plain TRM with attention.
    """
    if not settings:
        raise ModelFormatError(
            f"{source.file} has no hyper_parameters, and no {ALL_CONFIG} is beside it; copy it there."
        )
    for key, wanted in (("use_mlp", False), ("use_conv_swiglu", False), ("attn_gate_type", None)):
        if settings.get(key, wanted) != wanted:
            problem = f"{source.file} says {key} is {settings[key]!r}, a variant not served here"
            raise ModelFormatError(f"{problem}; serve another.")
    positions = {"1d": "rope", None: "none"}
    kind = settings.get("pos_emb_type")
    if kind not in positions:
        problem = f"{source.file} says pos_emb_type is {kind!r}, neither '1d' nor none"
        raise ModelFormatError(f"{problem}; serve another.")
    arch = {
        "name": "trm@TRMModule",
        "hidden_size": settings.get("hidden_size"),
        "num_heads": settings.get("num_heads"),
        "L_layers": settings.get("num_layers"),
        "H_cycles": settings.get("H_cycles"),
        "L_cycles": settings.get("L_cycles"),
        "halt_max_steps": settings.get("N_supervision_val"),
        "puzzle_emb_ndim": settings.get("puzzle_emb_dim"),
        "puzzle_emb_len": settings.get("puzzle_emb_len"),
        "rope_theta": settings.get("rope_theta"),
        "pos_encodings": positions[kind],
        "no_ACT_continue": True,
    }
    sizes = converted(dict(settings), _DataSetFile, source.file)
    data_set = DataSet(sizes.vocab_size, sizes.seq_len, is_declared=True)
    return replace(source, arch=arch, data_set=data_set)


def sizes_of(source: Source, weights: Mapping[str, Tensor]) -> DataSet:
    """Return the sizes of the data set, from its own file or else from the tensors.

    Raise ModelFormatError for tensors of another vocabulary than the data set's.
    """
    data_set = source.data_set
    vocab_size, _ = matrix_shape(weights, "embed_tokens.embedding_weight", source.file)
    if data_set.vocab_size not in (None, vocab_size):
        problem = (
            f"{source.file} has a vocabulary of {vocab_size} tokens, its data set one of "
            f"{data_set.vocab_size}"
        )
        raise ModelFormatError(f"{problem}; copy the files that belong together.")
    if data_set.seq_len is not None:
        return data_set

    # Without a data set, only tables and products over positions tell their number.
    num_positions = None
    if _is_mixing(source):
        num_positions = _rows(weights, "L_level.layers.0.mlp_t.down_proj.weight", source.file)
    elif _positions(source) == "learned":
        num_positions = _rows(weights, "embed_pos.embedding_weight", source.file)
    if num_positions is None:
        return replace(data_set, vocab_size=vocab_size)
    return replace(data_set, vocab_size=vocab_size, seq_len=num_positions - _puzzle_emb_len(source))


def network(
    source: Source, weights: Mapping[str, Tensor], vocab_size: int, seq_len: int
) -> PuzzleNetConfig:
    """Return the configuration of the network that the files describe.

    Raise ModelFormatError for a number that is missing or impossible.
    """
    family = _family(source)
    puzzle_emb_ndim = _whole(source, "puzzle_emb_ndim", default=0)
    down = {
        "hrm": "H_level.layers.0.mlp.down_proj.weight",
        "trm": "L_level.layers.0.mlp.down_proj.weight",
        "urm": "layers.0.mlp.down_proj.weight",
    }
    mixing_size = 0
    if _is_mixing(source):
        mixing_size = _columns(weights, "L_level.layers.0.mlp_t.down_proj.weight", source.file)
    num_q = 2
    if "q_head.weight" in weights and weights["q_head.weight"].shape[0] == 1:
        num_q = 1
    num_identifiers = 1
    if puzzle_emb_ndim:
        num_identifiers = _rows(weights, "puzzle_emb.weights", source.file)
    return PuzzleNetConfig(
        family=family,
        vocab_size=vocab_size,
        seq_len=seq_len,
        hidden_size=_whole(source, "hidden_size"),
        intermediate_size=_columns(weights, down[family], source.file),
        num_heads=_whole(source, "num_heads"),
        h_layers=_whole(source, "H_layers") if family == "hrm" else 0,
        l_layers=_whole(source, "num_layers" if family == "urm" else "L_layers"),
        h_cycles=_whole(source, "H_cycles"),
        l_cycles=_whole(source, "L_cycles"),
        halt_max_steps=_whole(source, "loops" if family == "urm" else "halt_max_steps"),
        pos_encoding=_positions(source),
        puzzle_emb_ndim=puzzle_emb_ndim,
        puzzle_emb_len=_puzzle_emb_len(source),
        num_identifiers=num_identifiers,
        mixing_size=mixing_size,
        num_q=num_q,
        halts_over_zero=_halts_over_zero(source, family),
        rope_theta=_positive(source, "rope_theta", default=1e4),
        norm_eps=_positive(source, "rms_norm_eps", default=1e-5),
    )


def _family(source: Source) -> Family:
    """Return the family of a network, by the module that its training named."""
    name = str(source.arch_section.get("name"))
    module = name.partition("@")[0].rpartition(".")[2].lower()
    if module == "trm":
        return "trm"
    if module == "urm":
        return "urm"
    if module.startswith("hrm"):
        return "hrm"
    problem = f"says arch.name is {name!r}, which is no HRM, TRM or URM network for puzzles"
    raise source.wrong(f"{problem}; serve another.")


def _is_mixing(source: Source) -> bool:
    """Return whether MLPs over positions are in place of attention."""
    if _family(source) != "trm":
        return False
    return _flag(source, "mlp_t", default=False)


def _puzzle_emb_len(source: Source) -> int:
    """Return the number of positions before the first cell."""
    ndim = _whole(source, "puzzle_emb_ndim", default=0)
    least = -(-ndim // _whole(source, "hidden_size"))
    length = _whole(source, "puzzle_emb_len", default=0) or least
    if length < least or (length and not ndim):
        problem = f"says arch.puzzle_emb_len is {length} and arch.puzzle_emb_ndim is {ndim}"
        raise source.wrong(f"{problem}, which do not fit together; correct it.")
    return length


def _halts_over_zero(source: Source, family: Family) -> bool:
    """Return whether q_halt is compared with 0.

    TRM's networks are of both kinds, and halt almost at once by the other kind's rule.
    """
    if family == "urm":
        return True
    if family == "hrm":
        return _flag(source, "no_ACT_continue", default=False)
    return _flag(source, "no_ACT_continue", default=None)


def _positions(source: Source) -> Positions:
    if _family(source) == "urm":
        return "rope"
    value: object = source.arch_section.get("pos_encodings")
    if value == "rope" or value == "learned" or value == "none":
        return value
    raise source.wrong(
        f"says arch.pos_encodings is {value!r}, neither 'rope', 'learned' nor 'none'; correct it."
    )


def _whole(source: Source, key: str, default: int | None = None) -> int:
    """Return a whole number that is at least 1, or the default.

    Raise ModelFormatError for any other value, or if the key is absent and there is no default.
    """
    value = source.arch_section.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or (value < 1 and value != default):
        raise source.wrong(
            f"says arch.{key} is {value!r}, not a whole number from 1 up; correct it."
        )
    return value


def _positive(source: Source, key: str, default: float) -> float:
    value = source.arch_section.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise source.wrong(f"says arch.{key} is {value!r}, not a number over 0; correct it.")
    return float(value)


def _flag(source: Source, key: str, default: bool | None) -> bool:
    value = source.arch_section.get(key, default)
    if not isinstance(value, bool):
        raise source.wrong(f"says arch.{key} is {value!r}, neither true nor false; correct it.")
    return value


def _rows(weights: Mapping[str, Tensor], name: str, file: Path) -> int:
    rows, _ = matrix_shape(weights, name, file)
    return rows


def _columns(weights: Mapping[str, Tensor], name: str, file: Path) -> int:
    _, columns = matrix_shape(weights, name, file)
    return columns
