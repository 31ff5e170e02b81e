"""Graphs of TensorFlow.js become ONNX graphs that compute the same, and NanoDet's boxes are right.

The oracle is torch, which was not asked when the operators were written.
"""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from scripts.cli.fetch import nanodet
from scripts.cli.fetch.tensorflow_js import GraphBuilder
from worker.onnx.declaration import read_declaration

Array = NDArray[Any]
Node = tuple[str, str, list[str], dict[str, Any]]
VALID = {"s": base64.b64encode(b"VALID").decode()}


def numbers(*values: int) -> dict[str, Any]:
    return {"list": {"i": [str(value) for value in values]}}


def write(path: Path, nodes: list[Node], constants: dict[str, Array]) -> Path:
    """Write a model of TensorFlow.js. Floats lie in float16."""
    path.mkdir(parents=True, exist_ok=True)
    listed: list[dict[str, Any]] = []
    weights = []
    data = b""
    for name, value in constants.items():
        listed.append({"name": name, "op": "Const"})
        entry: dict[str, Any] = {
            "name": name,
            "shape": list(value.shape),
            "dtype": str(value.dtype),
        }
        if value.dtype == np.float32:
            entry["quantization"] = {"dtype": "float16", "original_dtype": "float32"}
            data += value.astype(np.float16).tobytes()
        else:
            data += value.tobytes()
        weights.append(entry)
    for kind, name, given, attributes in nodes:
        listed.append({"name": name, "op": kind, "input": given, "attr": attributes})
    # A file may be cut in two.
    (path / "a.bin").write_bytes(data[:7])
    (path / "b.bin").write_bytes(data[7:])
    manifest = [{"paths": ["a.bin", "b.bin"], "weights": weights}]
    content = {"modelTopology": {"node": listed}, "weightsManifest": manifest}
    file = path / "model.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def placeholder(name: str, *sizes: int) -> Node:
    dims = [{"size": str(size)} for size in sizes]
    return ("Placeholder", name, [], {"shape": {"shape": {"dim": dims}}})


def whole(*values: int) -> Array:
    return np.array(values, dtype=np.int32)


NODES: list[Node] = [
    placeholder("x", 1, 2, 9, 7),
    ("Transpose", "last", ["x", "to_last"], {}),
    ("Pad", "padded", ["last", "room"], {}),
    (
        "Conv2D",
        "convolved",
        ["padded:0", "kernel"],
        {"padding": VALID, "strides": numbers(1, 2, 1, 1), "dilations": numbers(1, 1, 2, 1)},
    ),
    ("Add", "sum", ["convolved", "bias"], {}),
    ("LeakyRelu", "leaked", ["sum"], {"alpha": {"f": 0.1}}),
    ("PadV2", "padded_again", ["leaked", "room", "low"], {}),
    (
        "MaxPool",
        "pooled",
        ["padded_again"],
        {"padding": VALID, "ksize": numbers(1, 3, 2, 1), "strides": numbers(1, 2, 1, 1)},
    ),
    (
        "ResizeBilinear",
        "resized",
        ["pooled", "sides"],
        {"half_pixel_centers": {"b": True}, "align_corners": {"b": False}},
    ),
    ("ConcatV2", "twice", ["resized", "resized", "axis"], {}),
    ("SplitV", "parts", ["twice", "sizes", "axis"], {}),
    ("Sigmoid", "shares", ["parts:1"], {}),
    ("SparseToDense", "nothing", ["no_places", "two", "no_values", "zero"], {}),
    ("AddV2", "shape", ["flat", "nothing"], {}),
    ("Reshape", "rows", ["shares", "shape"], {}),
    ("Identity", "found", ["rows"], {}),
]


def constants() -> dict[str, Array]:
    random = np.random.default_rng(0)
    return {
        "to_last": whole(0, 2, 3, 1),
        "room": np.array([[0, 0], [1, 0], [2, 1], [0, 0]], dtype=np.int32),
        "kernel": random.normal(size=(3, 2, 2, 4)).astype(np.float16).astype(np.float32),
        "bias": random.normal(size=4).astype(np.float16).astype(np.float32),
        "low": np.float32(-5).reshape(()),
        "sides": whole(6, 5),
        "axis": whole(3).reshape(()),
        "sizes": whole(3, 5),
        "no_places": np.zeros((0, 1), dtype=np.int32),
        "two": whole(2),
        "no_values": whole(),
        "zero": whole(0).reshape(()),
        "flat": whole(1, -1),
    }


def by_torch(x: Array, given: dict[str, Array]) -> Array:
    kernel = torch.tensor(given["kernel"]).permute(3, 2, 0, 1)
    # (left, right, top, bottom)
    padded = functional.pad(torch.tensor(x), (2, 1, 1, 0))
    convolved = functional.conv2d(
        padded, kernel, torch.tensor(given["bias"]), (2, 1), dilation=(1, 2)
    )
    leaked = functional.leaky_relu(convolved, 0.1)
    pooled = functional.max_pool2d(functional.pad(leaked, (2, 1, 1, 0), value=-5), (3, 2), (2, 1))
    resized = functional.interpolate(pooled, (6, 5), mode="bilinear", align_corners=False)
    twice = torch.cat([resized, resized], dim=1).permute(0, 2, 3, 1)
    return twice[..., 3:].sigmoid().reshape(1, -1).numpy()


def test_each_operator_computes_what_torch_does(tmp_path: Path) -> None:
    given = constants()
    builder = GraphBuilder(write(tmp_path, NODES, given))
    model = builder.model({"found": (1, 150)})
    x = np.random.default_rng(1).normal(size=(1, 2, 9, 7)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    [found] = session.run(["found"], {"x": x})
    expected = by_torch(x, given)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert expected.std() > 0.05


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (("Softmax", "y", ["x"], {}), "the operator Softmax of y is not known"),
        (("Sigmoid", "y", ["bias"], {}), "the operator Sigmoid on constants"),
        (
            (
                "Conv2D",
                "y",
                ["x", "kernel"],
                {"padding": {"s": base64.b64encode(b"SAME").decode()}},
            ),
            "the padding SAME of y",
        ),
        (
            (
                "ResizeBilinear",
                "y",
                ["x", "sides"],
                {"half_pixel_centers": {"b": False}, "align_corners": {"b": False}},
            ),
            "the places of pixels in y",
        ),
    ],
)
def test_what_is_not_known_is_refused(node: Node, words: str, tmp_path: Path) -> None:
    file = write(tmp_path, [placeholder("x", 1, 4, 4, 2), node], constants())
    with pytest.raises(ValueError, match=words):
        GraphBuilder(file)


def write_detector(package: Path) -> None:
    """Write a NanoDet that takes its outputs from its input, as they are."""
    nodes: list[Node] = [placeholder("x", 1, 3, 416, 416), ("Reshape", "flat", ["x", "one"], {})]
    given: dict[str, Array] = {"one": whole(1, -1), "axis": whole(1).reshape(())}
    used = 0
    places = [("Identity", 52, 80), ("Identity_1", 26, 80), ("Identity_2", 13, 80)]
    places += [("Identity_3", 52, 44), ("Identity_4", 26, 44), ("Identity_5", 13, 44)]
    for name, side, width in places:
        size = side * side * width
        given[f"sizes_{name}"] = whole(used, size, 3 * 416 * 416 - used - size)
        given[f"shape_{name}"] = whole(1, side * side, width)
        nodes.append(("SplitV", f"cut_{name}", ["flat", f"sizes_{name}", "axis"], {}))
        nodes.append(("Reshape", name, [f"cut_{name}:1", f"shape_{name}"], {}))
        used += size
    write(package / "models", nodes, given)
    (package / "models" / "model.json").rename(package / "models" / "nanodet.json")


def test_boxes_are_expected_distances_from_the_middles_of_cells(tmp_path: Path) -> None:
    write_detector(tmp_path / "package")
    nanodet.convert(tmp_path / "package", tmp_path / "model")
    x = np.random.default_rng(2).normal(size=(1, 3, 416, 416)).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "model" / "model.onnx")
    boxes, scores = session.run(["boxes", "scores"], {"x": x})
    assert boxes.shape == (1, 52 * 52 + 26 * 26 + 13 * 13, 4)
    flat = x.reshape(-1)
    assert np.array_equal(scores.reshape(-1), flat[: scores.size])

    # The third cell of the second row of the grid of 26 cells, whose cells have 16 pixels.
    cell = 26 + 2
    first = scores.size + 52 * 52 * 44 + cell * 44
    logits = flat[first : first + 44].reshape(4, 11)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    left, top, right, bottom = 16 * (shares * np.arange(11)).sum(axis=1)
    middle_x, middle_y = 2.5 * 16, 1.5 * 16
    expected = [middle_x - left, middle_y - top, middle_x + right, middle_y + bottom]
    np.testing.assert_allclose(boxes[0, 52 * 52 + cell], expected, rtol=1e-4)

    declaration = read_declaration(tmp_path / "model" / "model.yaml")
    assert declaration.task == "object-detection"
    labels = (tmp_path / "model" / "labels.txt").read_text().splitlines()
    assert (len(labels), labels[0], labels[15], labels[41]) == (80, "person", "cat", "cup")
    onnx.checker.check_model(str(tmp_path / "model" / "model.onnx"), full_check=True)

    with pytest.raises(ValueError, match=r"expected one models/nanodet\.json, found 0"):
        nanodet.convert(tmp_path / "model", tmp_path / "other")
