"""Text in pictures: lines are found, read and put in order.

The tests' letters are squares of one colour each, so that a picture's text is known from how it was
painted.
"""

import base64
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from redis.asyncio import Redis

from shared.errors import WorkerFailed
from shared.tasks.vision import PageText, ReadPicture, TextLine
from tests.fixtures.onnx_models import (
    COLOURS,
    LETTER,
    PAGE,
    Made,
    declared,
    letter_finder,
    letter_reader,
    node,
    save,
    write_onnx,
)
from tests.fixtures.pictures import encoded
from tests.fixtures.worker.fleets import fleet
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import FilesAtHand, TaskOutput, Unwatched
from worker.host.loading import warm_up
from worker.models.errors import ModelFormatError
from worker.onnx.declaration import LineFinder
from worker.onnx.page import boxes_of, in_rows, scaled_size
from worker.runners.onnx_model import OnnxRunner
from worker.runners.registry import load_runner

SIDES = (256, 160)


def painted(*texts: tuple[str, int, int], sides: tuple[int, int] = SIDES) -> Image.Image:
    """Return a white picture with texts at these places (x, y), a square for each letter."""
    pixels = np.full((sides[1], sides[0], 3), 255, dtype=np.uint8)
    for text, x, y in texts:
        for number, letter in enumerate(text):
            left = x + number * LETTER
            pixels[y : y + LETTER, left : left + LETTER] = COLOURS[letter]
    return Image.fromarray(pixels)


def make(path: Path, **more: Any) -> OnnxRunner:
    runner = load_runner("auto", RunnerOptions(str(path), name="m", **more))
    assert isinstance(runner, OnnxRunner)
    return runner


def read(runner: OnnxRunner, *images: Image.Image, threshold: float = 0.5) -> list[PageText]:
    items = []
    for image in images:
        task = ReadPicture("x", threshold)
        items.append(runner.read(task, FilesAtHand({"x": encoded(image)})))
    pages = []
    for output in runner.run(items, Unwatched()):
        assert isinstance(output, TaskOutput), output
        assert isinstance(output.result, PageText)
        pages.append(output.result)
    return pages


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> OnnxRunner:
    path = tmp_path_factory.mktemp("page")
    write_onnx(PAGE, path)
    return make(path)


def test_the_text_of_a_picture_is_read(runner: OnnxRunner) -> None:
    image = painted(("abc", 16, 24), ("cab", 144, 28), ("bacab", 32, 80))
    [page] = read(runner, image)
    assert page.text == "abc cab\nbacab"
    assert [line.text for line in page.lines] == ["abc", "cab", "bacab"]
    for line, (x, y, length) in zip(
        page.lines, [(16, 24, 3), (144, 28, 3), (32, 80, 5)], strict=True
    ):
        right, bottom = x + length * LETTER, y + LETTER
        expected = [(x, y), (right, y), (right, bottom), (x, bottom)]
        assert line.corners == tuple(expected)
        assert 0.9 < line.score <= 1


def test_a_page_does_not_depend_on_its_batch(runner: OnnxRunner) -> None:
    images = [painted(("abc", 16, 24)), painted(("cab", 32, 80), ("a", 16, 24)), painted()]
    alone = [read(runner, image)[0] for image in images]
    assert read(runner, *images) == alone
    assert [page.text for page in alone] == ["abc", "a\ncab", ""]


def test_lines_of_any_length_share_calls(tmp_path: Path) -> None:
    """Some have the same width in the network's input, and some do not."""
    texts = ["a", "ab", "abcabc", "bcabca", "cab", "bababababababa"]
    places = [(text, 16, 16 + 48 * number) for number, text in enumerate(texts)]
    image = painted(*places, sides=(256, 320))
    write_onnx(PAGE, tmp_path)
    for size in (1, 2, 8):
        [page] = read(make(tmp_path, max_batch=size), image)
        assert page.text.splitlines() == texts


def test_text_that_runs_up_or_down_is_read(runner: OnnxRunner) -> None:
    image = painted(("abcab", 32, 32))
    for turn in (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270):
        [page] = read(runner, image.transpose(turn))
        # Colours have no top, so either way of reading these letters is as likely.
        assert page.text in ("abcab", "bacba")


def test_a_slanted_line_is_read(runner: OnnxRunner) -> None:
    image = painted(("abcabcabc", 48, 72)).rotate(
        15, Image.Resampling.BICUBIC, fillcolor=(255, 255, 255)
    )
    [page] = read(runner, image)
    assert page.text == "abcabcabc"
    (left, top), (right, right_top), *_ = page.lines[0].corners
    assert np.degrees(np.arctan2(top - right_top, right - left)) == pytest.approx(15, abs=2)


def test_unlikely_lines_and_blanks_are_left_out(runner: OnnxRunner) -> None:
    image = painted(("abc", 16, 24), ("   ", 16, 80))
    assert [line.text for line in read(runner, image)[0].lines] == ["abc"]
    assert read(runner, image, threshold=1.0)[0].lines == ()


def test_colours_layout_and_form_are_as_declared(tmp_path: Path) -> None:
    """The graph sees blue where there was red, and its tokens lie in columns."""
    graph = letter_reader()
    graph.nodes.append(node("Transpose", "tokens", "turned", perm=[0, 2, 1]))
    made = Made(
        graph.nodes, graph.weights, graph.inputs, {"turned": (1, ("n", len(COLOURS) + 1, "t"))}
    )
    fields = declared(PAGE)
    reader = fields["reader"] | {"output": {"layout": "BCT"}}
    reader["input"] = reader["input"] | {"colours": "BGR"}
    write_onnx(PAGE, tmp_path, reader=reader)
    save(tmp_path, made, "reader.onnx")
    [page] = read(make(tmp_path), painted(("abc", 16, 24)))
    assert page.text == "cba"


def test_boxes_are_grown_and_the_likeliest_kept() -> None:
    shares = np.zeros((64, 128), dtype=np.float32)
    shares[10:20, 10:50] = 0.9
    shares[40:50, 10:50] = 0.6
    shares[40:50, 80:120] = 0.4
    shares[10:12, 80:120] = 0.9
    found = boxes_of(shares, LineFinder(file="f", grow=0))
    assert [round(box.score, 3) for box in found] == [0.9, 0.6]
    assert found[0].corners.tolist() == [[10, 10], [50, 10], [50, 20], [10, 20]]

    [grown] = boxes_of(shares, LineFinder(file="f", grow=2, max_lines=1))
    added = 2 * 40 * 10 / (2 * (40 + 10))
    assert grown.corners[0] == pytest.approx([10 - added, 10 - added])
    assert grown.corners[2] == pytest.approx([50 + added, 20 + added])


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((256, 160), (256, 160)),
        ((100, 20), (160, 32)),
        ((2000, 20), (512, 16)),
        ((1000, 900), (512, 464)),
        ((3, 2), (48, 32)),
    ],
)
def test_pictures_of_any_size_are_taken(
    runner: OnnxRunner, sides: tuple[int, int], expected: tuple[int, int]
) -> None:
    image = painted(sides=sides)
    declaration: Any = runner._loaded.declaration
    assert scaled_size(image, declaration.finder.input) == expected
    assert read(runner, image) == [PageText("", ())]


def line(text: str, x: int, y: int, height: int = 10) -> TextLine:
    return TextLine(text, 1.0, ((x, y), (x + 50, y), (x + 50, y + height), (x, y + height)))


def test_rows_go_from_top_to_bottom_and_left_to_right() -> None:
    lines = [
        line("d", 0, 40),
        line("b", 100, 3),
        line("a", 0, 0),
        line("c", 60, 14),
        line("e", 100, 44, height=4),
    ]
    rows = [[one.text for one in row] for row in in_rows(lines)]
    assert rows == [["a", "b"], ["c"], ["d", "e"]]


def changed(part: str, **fields: Any) -> dict[str, Any]:
    return {part: declared(PAGE)[part] | fields}


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"finder": {}}, "finder.file", "required"),
        (changed("finder", file="../f.onnx"), "finder.file", "a file in this directory"),
        (changed("finder", threshold=2), "finder.threshold", "less than or equal to 1"),
        (changed("finder", input={"shortest": 8}), "finder.input.shortest", "at least `multiple`"),
        (changed("finder", input={"layout": "NHWC"}), "finder.input", "any size"),
        (changed("reader", input={"height": 8}), "reader.input.height", "not"),
        (
            changed("reader", input={"height": 16, "min_width": 5000}),
            "reader.input.min_width",
            "at",
        ),
        (changed("reader", blank=7), "reader.blank", "at most 4"),
        (changed("reader", output={"name": "no"}), "reader.output.name", "expected one of tokens"),
        (changed("reader", vocabulary="no.json"), "no.json", "cannot be read"),
        (changed("reader", file="no.onnx"), "no.onnx", "cannot be read"),
    ],
)
def test_wrong_fields_are_named(
    changes: dict[str, Any], field: str, words: str, tmp_path: Path
) -> None:
    write_onnx(PAGE, tmp_path, **changes)
    with pytest.raises(ModelFormatError) as error:
        make(tmp_path)
    assert field in str(error.value)
    assert words in str(error.value)


def test_graphs_of_one_size_are_refused(tmp_path: Path) -> None:
    finder = letter_finder()
    finder.inputs["pixels"] = (1, ("n", 3, 64, 64))
    finder.outputs["shares"] = (1, ("n", 1, 64, 64))
    write_onnx(PAGE, tmp_path / "finder", finder)
    with pytest.raises(ModelFormatError, match="a graph that takes any size"):
        make(tmp_path / "finder")

    reader = letter_reader()
    reader.inputs["line"] = (1, ("n", 3, LETTER, 64))
    reader.outputs["tokens"] = (1, ("n", 8, 5))
    write_onnx(PAGE, tmp_path / "reader")
    save(tmp_path / "reader", reader, "reader.onnx")
    with pytest.raises(ModelFormatError, match="takes lines of any width"):
        make(tmp_path / "reader")


def test_a_reader_of_one_line_reads_one_after_the_other(tmp_path: Path) -> None:
    write_onnx(PAGE, tmp_path)
    save(tmp_path, letter_reader(rows=1), "reader.onnx")
    [page] = read(make(tmp_path), painted(("abc", 16, 24), ("cab", 32, 80)))
    assert page.text == "abc\ncab"


def test_a_reader_whose_lines_depend_on_each_other_is_refused(tmp_path: Path) -> None:
    graph = letter_reader()
    # The mean of all lines is taken from each.
    graph.nodes[0] = node(
        "AveragePool",
        "apart",
        "pooled",
        kernel_shape=[LETTER, LETTER // 2],
        strides=[1, LETTER // 2],
    )
    graph.nodes.insert(0, node("Sub", "line mean", "apart"))
    graph.nodes.insert(0, node("ReduceMean", "line", "mean", axes=[0], keepdims=1))
    write_onnx(PAGE, tmp_path)
    save(tmp_path, graph, "reader.onnx")
    with pytest.raises(ModelFormatError, match="when two lines share a call; declare `one_by_one"):
        make(tmp_path)
    write_onnx(PAGE, tmp_path, one_by_one=True)
    save(tmp_path, graph, "reader.onnx")
    assert warm_up(make(tmp_path)).startswith("did a ")


def test_a_map_of_another_form_fails_its_task(tmp_path: Path) -> None:
    graph = letter_finder()
    graph.nodes[0] = node("Identity", "pixels", "grey")
    graph.outputs["shares"] = (1, ("n", 3, "h", "w"))
    write_onnx(PAGE, tmp_path, graph)
    runner = make(tmp_path)
    item = runner.read(ReadPicture("x"), FilesAtHand({"x": encoded(painted())}))
    [output] = runner.run([item], Unwatched())
    assert isinstance(output, WorkerFailed)
    assert "one map of probabilities" in output.message


def test_opencv_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_onnx(PAGE, tmp_path)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ModelFormatError, match=r"aios-hrm-fleet\[ocr\]"):
        make(tmp_path)


async def test_a_picture_is_read_over_http(redis: Redis, runner: OnnxRunner) -> None:
    async with fleet(redis, runner) as client:
        data = encoded(painted(("abc", 16, 24), ("cab", 32, 80)))
        body = {"pipeline_tag": "ocr", "inputs": base64.b64encode(data).decode(), "model_id": "t"}
        answer = await client.post("/api/inference", json=body)
        assert answer.status_code == 200, answer.text
        result = answer.json()["result"]
        assert result["text"] == "abc\ncab"
        assert len(result["lines"][0]["corners"]) == 4
