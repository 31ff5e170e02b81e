"""Directories of diffusers' pipelines: `model_index.json`, and a folder for each part.

The index names the class of each part. Only classes of diffusers and transformers are loaded, from
safetensors and JSON: nothing in a directory is run, and nothing is fetched.
"""

import inspect
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoImageProcessor

from shared.messages import TaskName
from worker.models.diffusion_index import INDEX, PIPELINES, class_of_index
from worker.models.errors import ModelFormatError
from worker.models.hf_directory import check_safetensors, is_there
from worker.models.reading import COPY_AGAIN, read_json_object, reading
from worker.models.weights import NO_NETWORK, check_all_loaded, load_tokenizer

_UNSEEDED = (
    "DPMSolverSDEScheduler",
    "CosineDPMSolverMultistepScheduler",
    "FlowMatchLCMScheduler",
)
"""Schedulers whose steps draw noise for a whole batch, whatever the seeds of its pictures."""

_OPTIONAL = (
    "safety_checker",
    "feature_extractor",
    "image_encoder",
    "text_encoder_3",
    "tokenizer_3",
)
_OWN_MODULES = ("stable_diffusion", "shap_e")
"""An index's names of modules of diffusers: of the checker of contents, and of the renderer."""

_IMAGE_PROCESSORS = ("feature_extractor", "image_processor")


def load_pipeline(path: Path, dtype: torch.dtype) -> Any:
    """Return the `diffusers.DiffusionPipeline` in a directory, on the CPU.

    A checker of contents that the directory lacks is left out. Raise ModelFormatError for files
    that are missing or damaged, for other pipelines and classes than those that are known here, and
    without the package diffusers.
    """
    index = read_json_object(path / INDEX)
    diffusers = _diffusers()
    name = class_of_index(path)
    parts: dict[str, Any] = {}
    for part, declared in index.items():
        if not part.startswith("_") and isinstance(declared, list):
            parts[part] = _part_of(part, declared, path, dtype)
    if parts.get("safety_checker") is None:
        # Nothing else looks at pictures.
        parts["feature_extractor"] = None
    scheduler = parts.get("scheduler")
    if scheduler is not None and scheduler.config.get("stochastic_sampling"):
        raise _unseeded(path, "stochastic_sampling of its scheduler")

    pipeline_class: Any = getattr(diffusers, name)
    known = inspect.signature(pipeline_class).parameters
    given: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False} | parts
    given = {option: value for option, value in given.items() if option in known}
    with reading(path, f"correct {INDEX}, or {COPY_AGAIN}", kind="a pipeline"):
        return pipeline_class.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, **given
        )


def pipelines_of(pipeline: Any) -> dict[TaskName, Any]:
    """Return a pipeline for each task, all around the networks of this one."""
    pipelines = {}
    for task, name in PIPELINES[type(pipeline).__name__].items():
        kind: Any = getattr(_diffusers(), name)
        pipelines[task] = pipeline if type(pipeline) is kind else kind.from_pipe(pipeline)
    return pipelines


def networks_of(pipeline: Any) -> dict[str, nn.Module]:
    """Return the networks of a pipeline by the names of their parts."""
    networks = {}
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            networks[name] = part
    return networks


def _diffusers() -> Any:
    """Return the package diffusers. Raise ModelFormatError where it is missing."""
    try:
        import diffusers
    except ImportError as error:
        raise ModelFormatError(
            "A diffusion pipeline needs the package diffusers, which is not installed: "
            "pip install 'aios-hrm-fleet[diffusion]'."
        ) from error
    # It tells of prompts that lose their end, and of what it would rather have installed.
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    return diffusers


def _class_of(part: str, declared: list[Any], path: Path) -> type[Any]:
    """Return the class of a part, which the index declares as library and name.

    Raise ModelFormatError for a class of any other library, or one that is not there.
    """
    libraries = {"diffusers": _diffusers(), "transformers": transformers}
    for module in _OWN_MODULES:
        libraries[module] = getattr(_diffusers().pipelines, module)
    [library, name] = declared if len(declared) == 2 else (None, None)
    if library not in libraries:
        raise ModelFormatError(
            f"{path / INDEX} takes {part} from {library!r}; expected diffusers or transformers: "
            "other code is not run."
        )
    kind = getattr(libraries[library], str(name), None)
    if name in _UNSEEDED:
        raise _unseeded(path, name)
    if part in _IMAGE_PROCESSORS:
        # Its class depends on what is installed, and older names of it are gone.
        return AutoImageProcessor
    if not isinstance(kind, type) or not hasattr(kind, "from_pretrained"):
        raise ModelFormatError(
            f"{path / INDEX} names {library}.{name} as {part}, which the installed {library} does "
            "not have."
        )
    return kind


def _unseeded(path: Path, source: str) -> ModelFormatError:
    return ModelFormatError(
        f"{path} asks for {source}, whose noise a picture's seed does not decide; name another "
        f"scheduler in {INDEX}."
    )


def _part_of(part: str, declared: list[Any], path: Path, dtype: torch.dtype) -> Any:
    """Load one part from its folder, or return None for one that may be missing.

    Raise ModelFormatError.
    """
    if declared == [None, None]:
        if part in _OPTIONAL:
            return None
        raise ModelFormatError(f"{path / INDEX} names no {part}, which a picture needs.")
    kind: Any = _class_of(part, declared, path)
    folder = path / part
    if not is_there(folder):
        # A checker needs it, and nothing else.
        if part == "feature_extractor":
            return None
        raise ModelFormatError(f"{folder}, which {INDEX} names, is not there; copy it again.")
    if issubclass(kind, nn.Module):
        return _load_network(kind, folder, dtype)
    if issubclass(kind, transformers.PreTrainedTokenizerBase):
        return load_tokenizer(folder)
    with reading(folder, kind=f"a {part.replace('_', ' ')}"):
        return kind.from_pretrained(folder, local_files_only=True)


def _load_network(kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load one network. Raise ModelFormatError, which names weights that do not match."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelFormatError(
            f"{folder} has no weights in safetensors: save them so (save_pretrained)."
        )
    for file in files:
        check_safetensors(file)
    with reading(folder, NO_NETWORK, kind="a network"):
        network, info = kind.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    check_all_loaded(info, folder)
    loaded: nn.Module = network.requires_grad_(False).eval()
    return loaded
