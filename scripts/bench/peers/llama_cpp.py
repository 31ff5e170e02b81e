"""llama.cpp as a peer: its server, built for this machine from the sources that PyPI has.

It needs `cmake` and a compiler. Nets are converted by its own script. The tokenizer of our nets is
none that the script knows, so it is told which one to write; prompts are token ids, and the net is
the same.
"""

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

VERSION = "0.3.36"
"""The version of llama-cpp-python, whose sources contain llama.cpp."""

_OUTTYPES = {"float32": "f32", "bfloat16": "bf16", "int8": "q8_0"}
_CONVERT = """
import sys
tree, *words = sys.argv[1:]
sys.path.insert(0, tree)
sys.argv = ["convert", *words]
import convert_hf_to_gguf as script
from conversion.base import TextModel
from conversion.llama import LlamaModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"

def set_vocab(self):
    self._set_vocab_gpt2()
    # A file without merges is not loaded.
    self.gguf_writer.add_token_merges(["a b"])

LlamaModel.set_vocab = set_vocab
script.main()
"""
_BUILD = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
]


class BuildError(Exception):
    """A step of the build or of a conversion failed. The message has its last words."""


def build(folder: Path) -> None:
    """Get the sources and build the server, unless it is there. That takes several minutes.

    Raise BuildError.
    """
    if server(folder).exists():
        return
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        raise BuildError("cmake and a C++ compiler are needed")
    folder.mkdir(parents=True, exist_ok=True)
    name = f"llama-cpp-python=={VERSION}"
    download = ["download", name, "--no-deps", "--no-binary", ":all:"]
    _run([sys.executable, "-m", "pip", *download, "--dest", str(folder)])
    [archive] = folder.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as sources:
        sources.extractall(folder, filter="data")
    archive.unlink()
    tree = _tree(folder)
    _run(["cmake", "-S", str(tree), "-B", str(tree / "build"), *_BUILD])
    _run(["cmake", "--build", str(tree / "build"), "--target", "llama-server", "--parallel"])


def server(folder: Path) -> Path:
    """Return the path of the program."""
    return _tree(folder) / "build" / "bin" / "llama-server"


def converted(folder: Path, model: Path, dtype: str) -> Path:
    """Return the file of a net with weights of a type. It is written if it does not exist."""
    file = folder / f"{model.name}-{_OUTTYPES[dtype]}.gguf"
    if not file.exists():
        words = [str(model), "--outtype", _OUTTYPES[dtype], "--outfile", str(file)]
        _run([sys.executable, "-c", _CONVERT, str(_tree(folder)), *words])
    return file


def _tree(folder: Path) -> Path:
    return folder / f"llama_cpp_python-{VERSION}" / "vendor" / "llama.cpp"


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise BuildError(f"{Path(command[0]).name} failed: {words[-1] if words else 'no words'}")
