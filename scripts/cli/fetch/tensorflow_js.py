"""Graphs of TensorFlow.js as ONNX: the operators that NanoDet needs, and no others.

TensorFlow keeps channels last and ONNX first, so a convolution stands between two transpositions.
onnxruntime takes out those that cancel each other.
"""

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
_CHANNELS_FIRST = [0, 3, 1, 2]
_CHANNELS_LAST = [0, 2, 3, 1]
_OPSET = 17


class GraphBuilder:
    """The ONNX graph of a model: `json` describes it, and beside it lie its weights.

    Raises ValueError for an operator that is not known here.
    """

    def __init__(self, file: Path) -> None:
        content = json.loads(file.read_text(encoding="utf-8"))
        self.constants: dict[str, Array] = weights_of(content["weightsManifest"], file.parent)
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self._num_names = 0
        for node in content["modelTopology"]["node"]:
            self._add_node(node)

    def _add_node(self, node: dict[str, Any]) -> None:
        kind = node["op"]
        name = node["name"]
        given = [_plain(one) for one in node.get("input", ())]
        attributes = node.get("attr", {})
        if kind == "Const":
            return
        if kind == "Placeholder":
            sizes = [int(one["size"]) for one in attributes["shape"]["shape"]["dim"]]
            self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes))
            return
        if all(one in self.constants for one in given):
            self.constants[name] = _folded(kind, [self.constants[one] for one in given])
            return
        if kind not in _WRITERS:
            raise ValueError(f"the operator {kind} of {name} is not known")
        _WRITERS[kind](self, name, given, attributes)

    def add(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **more: Any) -> None:
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), **more))

    def made(self, kind: str, inputs: Sequence[str], **more: Any) -> str:
        """Add a node and return the name of its output."""
        name = self._new_name()
        self.add(kind, inputs, [name], **more)
        return name

    def constant(self, value: Any) -> str:
        name = self._new_name()
        self.constants[name] = np.asarray(value)
        return name

    def _new_name(self) -> str:
        self._num_names += 1
        return f"made_{self._num_names}"

    def model(self, outputs: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
        """Return the model with these outputs, by name with their shapes."""
        used = {name for node in self.nodes for name in node.input}
        weights = []
        for name, value in self.constants.items():
            if name in used:
                weights.append(numpy_helper.from_array(value, name))
        results = []
        for name, shape in outputs.items():
            results.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))
        graph = helper.make_graph(self.nodes, "graph", self.inputs, results, weights)
        opset = helper.make_opsetid("", _OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
        onnx.checker.check_model(model)
        return model


def weights_of(manifest: Sequence[dict[str, Any]], folder: Path) -> dict[str, Array]:
    """Return the weights of a manifest. Numbers are in float32, also those that lie in float16."""
    weights: dict[str, Array] = {}
    for group in manifest:
        data = b"".join((folder / name).read_bytes() for name in group["paths"])
        offset = 0
        for one in group["weights"]:
            stored = np.dtype(one.get("quantization", {}).get("dtype", one["dtype"]))
            count = math.prod(one["shape"])
            array = np.frombuffer(data, stored, count, offset).reshape(one["shape"])
            offset += array.nbytes
            weights[one["name"]] = array.astype(one["dtype"])
    return weights


def _plain(name: str) -> str:
    """Return the name of a node's output: its first one has the name of the node."""
    return name.removesuffix(":0").replace(":", "_output_")


def _folded(kind: str, given: Sequence[Array]) -> Array:
    """Return the result of an operator on constants, which are the shapes of reshapings."""
    if kind == "SparseToDense":
        places, shape, values, default = given
        dense = np.full(tuple(shape), default)
        dense[tuple(places.T)] = values
        return dense
    if kind == "AddV2":
        total: Array = given[0] + given[1]
        return total
    raise ValueError(f"the operator {kind} on constants is not known")


Attributes = dict[str, Any]
Writer = Callable[[GraphBuilder, str, list[str], Attributes], None]


def _numbers(attributes: Attributes, name: str) -> list[int]:
    return [int(one) for one in attributes[name]["list"]["i"]]


def _sides(attributes: Attributes, name: str) -> list[int]:
    """Return height and width of what has a number for each of (row, height, width, channel)."""
    return _numbers(attributes, name)[1:3]


def _check_unpadded(name: str, attributes: Attributes) -> None:
    padding = base64.b64decode(attributes["padding"]["s"]).decode()
    if padding != "VALID":
        raise ValueError(f"the padding {padding} of {name} is not known")


def _convolve(graph: GraphBuilder, name: str, given: list[str], attributes: Attributes) -> None:
    _check_unpadded(name, attributes)
    # From (height, width, in, out).
    kernel = graph.constant(graph.constants[given[1]].transpose(3, 2, 0, 1).copy())
    first = graph.made("Transpose", given[:1], perm=_CHANNELS_FIRST)
    convolved = graph.made(
        "Conv",
        [first, kernel],
        strides=_sides(attributes, "strides"),
        dilations=_sides(attributes, "dilations"),
    )
    graph.add("Transpose", [convolved], [name], perm=_CHANNELS_LAST)


def _pool(graph: GraphBuilder, name: str, given: list[str], attributes: Attributes) -> None:
    _check_unpadded(name, attributes)
    first = graph.made("Transpose", given, perm=_CHANNELS_FIRST)
    pooled = graph.made(
        "MaxPool",
        [first],
        kernel_shape=_sides(attributes, "ksize"),
        strides=_sides(attributes, "strides"),
    )
    graph.add("Transpose", [pooled], [name], perm=_CHANNELS_LAST)


def _resize(graph: GraphBuilder, name: str, given: list[str], attributes: Attributes) -> None:
    if not attributes["half_pixel_centers"]["b"] or attributes["align_corners"]["b"]:
        raise ValueError(f"the places of pixels in {name} are not known")
    first = graph.made("Transpose", given[:1], perm=_CHANNELS_FIRST)
    shape = graph.made("Shape", [first], end=2)
    sides = graph.constant(graph.constants[given[1]].astype(np.int64))
    sizes = graph.made("Concat", [shape, sides], axis=0)
    resized = graph.made("Resize", [first, "", "", sizes], mode="linear")
    graph.add("Transpose", [resized], [name], perm=_CHANNELS_LAST)


def _pad(graph: GraphBuilder, name: str, given: list[str], attributes: Attributes) -> None:
    # From (before, after) of each axis to all befores, then all afters.
    room = graph.constant(graph.constants[given[1]].astype(np.int64).T.reshape(-1).copy())
    graph.add("Pad", [given[0], room, *given[2:]], [name])


def _transpose(graph: GraphBuilder, name: str, given: list[str], attributes: Attributes) -> None:
    graph.add("Transpose", given[:1], [name], perm=graph.constants[given[1]].tolist())


def _reshape(graph: GraphBuilder, name: str, given: list[str], attributes: Attributes) -> None:
    shape = graph.constant(graph.constants[given[1]].astype(np.int64))
    graph.add("Reshape", [given[0], shape], [name])


def _concatenate(graph: GraphBuilder, name: str, given: list[str], attributes: Attributes) -> None:
    *parts, axis = given
    graph.add("Concat", parts, [name], axis=int(graph.constants[axis]))


def _split(graph: GraphBuilder, name: str, given: list[str], attributes: Attributes) -> None:
    sizes = graph.constants[given[1]].astype(np.int64)
    outputs = [name if n == 0 else f"{name}_output_{n}" for n in range(len(sizes))]
    axis = int(graph.constants[given[2]])
    graph.add("Split", [given[0], graph.constant(sizes)], outputs, axis=axis)


def _leak(graph: GraphBuilder, name: str, given: list[str], attributes: Attributes) -> None:
    graph.add("LeakyRelu", given, [name], alpha=float(attributes["alpha"]["f"]))


def _same(kind: str) -> Writer:
    """Return the writer of an operator that ONNX has under the name `kind`."""

    def write(graph: GraphBuilder, name: str, given: list[str], attributes: Attributes) -> None:
        graph.add(kind, given, [name])

    return write


_WRITERS: dict[str, Writer] = {
    "Add": _same("Add"),
    "AddV2": _same("Add"),
    "ConcatV2": _concatenate,
    "Conv2D": _convolve,
    "Identity": _same("Identity"),
    "LeakyRelu": _leak,
    "MaxPool": _pool,
    "Pad": _pad,
    "PadV2": _pad,
    "Reshape": _reshape,
    "ResizeBilinear": _resize,
    "Sigmoid": _same("Sigmoid"),
    "SplitV": _split,
    "Transpose": _transpose,
}
