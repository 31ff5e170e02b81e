"""An ONNX file in onnxruntime: its inputs and outputs, and its calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shared.errors import WorkerFailed
from worker.engine.heartbeat import silent_for
from worker.engine.runner import OutOfMemory
from worker.models.errors import ModelFormatError
from worker.models.reading import reading, reason_of
from worker.onnx.declaration import wrong

Array = NDArray[Any]
Arrays = Mapping[str, Array]

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
_LONGEST_CALL_S = 60.0
"""The longest call of a graph that is not thought to hang: inside, nothing tells of progress."""
_MEMORY_WORDS = ("allocate memory", "bad_alloc", "bad allocation", "out of memory")
_NO_ONNXRUNTIME = (
    "An ONNX model needs onnxruntime, which is missing: pip install 'aios-hrm-fleet[onnx]'."
)


@dataclass(frozen=True)
class TensorInfo:
    """An input or an output. Sizes that are free are None."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


class Graph:
    """A loaded ONNX file. `declared_in` is the YAML that errors name."""

    def __init__(self, file: Path, declared_in: Path) -> None:
        """Load the file. Raise ModelFormatError for a damaged one, and without onnxruntime."""
        self.file = file
        self.declared_in = declared_in
        try:
            import onnxruntime
        except ImportError:
            raise ModelFormatError(_NO_ONNXRUNTIME) from None

        options = onnxruntime.SessionOptions()
        # As many threads as torch has, which are those of the worker.
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        # Threads that spin while they wait would take the cores of other workers.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        with reading(file, kind="an ONNX model"):
            self._session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        self.inputs = {one.name: _info(one, file) for one in self._session.get_inputs()}
        # Outputs of other types, such as lists of mappings, are of no use to any task.
        self.outputs = {
            one.name: _info(one, file) for one in self._session.get_outputs() if one.type in _DTYPES
        }

    @property
    def num_threads(self) -> int:
        """Return the number of threads that compute."""
        return int(self._session.get_session_options().intra_op_num_threads)

    def input(self, name: str | None, field: str) -> TensorInfo:
        """Return the input that `field` of the declaration names. None is the only one."""
        return self._found(name, self.inputs, field)

    def output(self, name: str | None, field: str) -> TensorInfo:
        """Return the output that `field` of the declaration names. None is the only one."""
        return self._found(name, self.outputs, field)

    def _found(self, name: str | None, tensors: Mapping[str, TensorInfo], field: str) -> TensorInfo:
        if name is None and len(tensors) == 1:
            [only] = tensors.values()
            return only
        if name is not None and name in tensors:
            return tensors[name]
        known = ", ".join(tensors)
        raise wrong(self.declared_in, field, f"expected one of {known}, got {name!r}")

    def check_inputs(self, given: Sequence[str]) -> None:
        """Raise ModelFormatError for an input that nothing is declared for, or a wrong name."""
        for name in given:
            if name not in self.inputs:
                known = ", ".join(self.inputs)
                problem = f"the graph has no input {name!r}, expected one of {known}"
                raise wrong(self.declared_in, "input", problem)
            if given.count(name) > 1:
                raise wrong(self.declared_in, "input", f"{name!r} is declared twice")
        for name in self.inputs:
            if name not in given:
                problem = f"the graph takes {name!r}, too: name it, or declare it in `constants`"
                raise wrong(self.declared_in, "input", problem)

    def check_shape(self, info: TensorInfo, expected: Sequence[int | None], field: str) -> None:
        """Raise ModelFormatError for an input that cannot have the `expected` shape."""
        fits = len(info.shape) == len(expected)
        for size, declared in zip(info.shape, expected, strict=False):
            if None not in (size, declared) and size != declared:
                fits = False
        if not fits:
            problem = (
                f"the graph's {info.name!r} has the shape {_shown(info.shape)}, which is not "
                f"{_shown(expected)} as declared"
            )
            raise wrong(self.declared_in, field, problem)

    def constants(self, declared: Mapping[str, Any]) -> dict[str, Array]:
        """Return the constants of a declaration, in the types of their inputs."""
        arrays = {}
        for name, value in declared.items():
            info = self.input(name, f"constants.{name}")
            try:
                array = np.asarray(value, dtype=info.dtype)
            except (ValueError, OverflowError) as error:
                raise wrong(
                    self.declared_in, f"constants.{name}", f"no {info.dtype}: {error}"
                ) from None
            self.check_shape(info, array.shape, f"constants.{name}")
            arrays[name] = array
        return arrays

    def run(self, feeds: Arrays, names: Sequence[str]) -> dict[str, Array]:
        """Return the outputs of these names, floats of any kind as float32.

        Raise OutOfMemory, and WorkerFailed for any other error of the graph.
        """
        try:
            with silent_for(at_most_s=_LONGEST_CALL_S):
                outputs = self._session.run(list(names), dict(feeds))
        except Exception as error:
            # onnxruntime's errors derive from Exception, and only their texts tell them apart.
            message = str(error)
            if any(words in message for words in _MEMORY_WORDS):
                raise OutOfMemory(message.partition("\n")[0]) from error
            raise WorkerFailed(f"{self.file.name} failed: {reason_of(error)}") from error
        arrays = {}
        for name, output in zip(names, outputs, strict=True):
            array = np.asarray(output)
            if np.issubdtype(array.dtype, np.floating):
                array = array.astype(np.float32, copy=False)
            arrays[name] = array
        return arrays


def _info(tensor: Any, file: Path) -> TensorInfo:
    if tensor.type not in _DTYPES:
        raise ModelFormatError(
            f"{file}: {tensor.name!r} is a {tensor.type}, which is not served: serve a model whose "
            "inputs are tensors of numbers."
        )
    shape = tuple(size if isinstance(size, int) else None for size in tensor.shape)
    return TensorInfo(tensor.name, np.dtype(_DTYPES[tensor.type]), shape)


def _shown(shape: Sequence[int | None]) -> str:
    sizes = ["any" if size is None else str(size) for size in shape]
    return f"[{', '.join(sizes)}]"
