"""Models that the runners of `plugins/` serve, each in the form that its runner reads."""

import json
import pickle
import shutil
from pathlib import Path


def fracast(package: Path, target: Path) -> None:
    """Write the weights of Fracast-0. Raise ValueError if they are not there."""
    weights = package / "fracast" / "weights"
    _check(weights, "config.json", "model.safetensors")
    target.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(weights / name, target / name)


def hibari(package: Path, target: Path) -> None:
    """Write the voice of hibari. Raise ValueError if it is not there."""
    assets = package / "hibari" / "assets"
    _check(assets, "hibari.onnx")
    target.mkdir()
    shutil.copy(assets / "hibari.onnx", target / "voice.onnx")


def cn2en(package: Path, target: Path) -> None:
    """Write the tensors of cn2en and the words of its languages, which are pickles of the package.

    Raise ValueError if they hold anything else, which is not run.
    """
    import torch
    from safetensors.torch import save_file

    folder = package / "cn2en"
    _check(folder, "model.pth", "input_lang.pkl", "output_lang.pkl")
    try:
        state = torch.load(folder / "model.pth", map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"model.pth: {error}") from error
    tensors = {}
    for side, new_side in (("encoder", "read"), ("decoder", "write")):
        for name, tensor in state[side].items():
            place = name if name.startswith("out.") else f"{new_side}_{name}"
            tensors[place] = tensor.clone()
    target.mkdir()
    save_file(tensors, target / "model.safetensors")
    for name, words_of in (("source", "input_lang.pkl"), ("target", "output_lang.pkl")):
        words = json.dumps(_words(folder / words_of), ensure_ascii=False)
        (target / f"{name}.json").write_text(words, encoding="utf-8")


def _check(folder: Path, *names: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"expected {folder.name}/{name}")


class _Language:
    """Stands for the class of the package, of which only the attributes are wanted."""

    index2word: dict[int, str]


class _Plain(pickle.Unpickler):
    """Reads a pickle of one object with dictionaries in it, and nothing that could run."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) == ("__main__", "Lang"):
            return _Language
        raise ValueError(f"expected words alone, found {module}.{name}")


def _words(file: Path) -> list[str]:
    """Return the words of a language, in the order of their numbers."""
    with file.open("rb") as stream:
        words = _Plain(stream).load().index2word
    return [words[number] for number in range(len(words))]
