"""NanoDet as the Human library has it, as an ONNX file that tells boxes and scores.

Lyu, "NanoDet" (2020). For each side of a box the network gives the shares of the distances from 0
to 10, in steps of the grid's cells (Li et al., "Generalized Focal Loss", 2020).
"""

from pathlib import Path

import numpy as np
import onnx

from scripts.cli.fetch.tensorflow_js import GraphBuilder

_SIDE = 416
_STRIDES = {"Identity": 8, "Identity_1": 16, "Identity_2": 32}
"""The pixels of a cell of each output of scores. The outputs of distances come 3 numbers later."""
_DISTANCES = {"Identity": "Identity_3", "Identity_1": "Identity_4", "Identity_2": "Identity_5"}
_NUM_DISTANCES = 11
_LABELS = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, "
    "fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, "
    "bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, "
    "sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, "
    "bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, "
    "dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, "
    "toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
)
"""The 80 classes of COCO in their order."""
_DECLARATION = """\
task: object-detection
input:
  resize: letterbox
  colours: BGR
  scale: 1
  mean: [103.53, 116.28, 123.675]
  std: [57.375, 57.12, 58.395]
output:
  boxes: {name: boxes, format: xyxy}
  scores: {name: scores}
nms: {iou: 0.6}
labels: labels.txt
"""


def convert(package: Path, target: Path) -> None:
    """Write the detector of an unpacked package.

    Raise ValueError if it is not there, or has operators that are not known here.
    """
    files = sorted(package.glob("**/models/nanodet.json"))
    if len(files) != 1:
        raise ValueError(f"expected one models/nanodet.json, found {len(files)}")
    graph = GraphBuilder(files[0])
    num_cells = sum((_SIDE // stride) ** 2 for stride in _STRIDES.values())
    boxes = []
    for scores, stride in _STRIDES.items():
        boxes.append(_boxes(graph, _DISTANCES[scores], stride))
    graph.add("Concat", boxes, ["boxes"], axis=1)
    graph.add("Concat", list(_STRIDES), ["scores"], axis=1)

    target.mkdir()
    labels = _LABELS.split(", ")
    outputs = {"boxes": (1, num_cells, 4), "scores": (1, num_cells, len(labels))}
    onnx.save(graph.model(outputs), str(target / "model.onnx"))
    (target / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
    (target / "model.yaml").write_text(_DECLARATION, encoding="utf-8")


def _boxes(graph: GraphBuilder, distances: str, stride: int) -> str:
    """Add the nodes that make boxes [1, cells, 4] of shares of distances [1, cells, 4 x 11].

    Return the name of their output.
    """
    num_cells = (_SIDE // stride) ** 2
    apart = graph.constant(np.array([1, num_cells, 4, _NUM_DISTANCES], dtype=np.int64))
    logits = graph.made("Reshape", [distances, apart])
    shares = graph.made("Softmax", [logits], axis=3)
    # The expected distances (left, top, right, bottom), in pixels.
    steps = graph.constant(np.arange(_NUM_DISTANCES, dtype=np.float32)[:, None] * stride)
    column = graph.made("MatMul", [shares, steps])
    sides = graph.made("Reshape", [column, graph.constant(np.array([1, num_cells, 4]))])
    signs = np.array([-1, -1, 1, 1], dtype=np.float32)
    offsets = graph.made("Mul", [sides, graph.constant(signs)])
    rows, columns = np.divmod(np.arange(num_cells), _SIDE // stride)
    middles = (np.stack([columns, rows], axis=1) + 0.5) * stride
    places = graph.constant(np.tile(middles, 2)[None].astype(np.float32))
    return graph.made("Add", [offsets, places])
