"""The result of any task, drawn by what is in it: files, scores, findings in a picture, numbers."""

import math
import mimetypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import streamlit as st

from scripts.ui.client import Body
from scripts.ui.pictures import Mask, Outline, masked, outlined, shown
from scripts.ui.session import client

_FILES_KEPT = 64
_KEPT_FOR = timedelta(minutes=10)
_MOST_BARS = 25
_FIRST_NUMBERS = 8
_SHORT = 30
_TEXT = "text"


@dataclass(frozen=True)
class SentInputs:
    """Inputs that results are drawn with: a picture and the numbers of a series, if any."""

    picture: bytes | None = None
    series: tuple[float, ...] = ()


def show_result(result: Body, sent: SentInputs) -> None:
    """Draw a result: its parts one after the other, and then its single figures together."""
    figures: dict[str, str] = {}
    for name, value in result.items():
        if value is None:
            continue
        if name in _DRAWN_BY_NAME:
            _DRAWN_BY_NAME[name](value, result, sent)
        elif _is_figure(name, value):
            figures[name] = _figure(value)
        else:
            _show_value(name, value, sent)
    if figures:
        with st.container(horizontal=True):
            for name, figure in figures.items():
                st.metric(_title(name), figure, width="content")


def _is_figure(name: str, value: Any) -> bool:
    """Return whether a value is a number, a word, or a few numbers."""
    if isinstance(value, bool | int | float):
        return True
    if isinstance(value, str):
        return name != _TEXT and len(value) <= _SHORT
    if isinstance(value, list) and 0 < len(value) <= _FIRST_NUMBERS:
        return all(isinstance(part, bool | int | float) for part in value)
    return False


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _figure(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_figure, value))
    return str(value)


def _show_value(name: str, value: Any, sent: SentInputs) -> None:
    """Draw one part of a result by its shape."""
    if isinstance(value, str):
        st.code(value, language=None, wrap_lines=True)
    elif _is_file(value):
        _show_file(name, value)
    elif isinstance(value, dict):
        show_result(value, sent)
    elif isinstance(value, list) and value:
        _show_list(name, value, sent)
    elif isinstance(value, list):
        st.caption(f"{_title(name)}: none")


def _show_list(name: str, values: Sequence[Any], sent: SentInputs) -> None:
    if all(isinstance(value, int | float) for value in values):
        _show_vector(name, values)
    elif all(isinstance(value, dict) for value in values):
        _show_rows(name, values)
    else:
        for value in values:
            _show_value(name, value, sent)


def _show_vector(name: str, numbers: Sequence[float]) -> None:
    """Draw a short summary of numbers."""
    length = math.sqrt(math.fsum(number * number for number in numbers))
    first = ", ".join(_figure(number) for number in numbers[:_FIRST_NUMBERS])
    more = ", ..." if len(numbers) > _FIRST_NUMBERS else ""
    with st.container(horizontal=True):
        st.metric(_title(name), f"{len(numbers)} numbers", width="content")
        st.metric("Length", _figure(length), width="content")
        st.metric("From", _figure(min(numbers)), width="content")
        st.metric("To", _figure(max(numbers)), width="content")
    st.caption(f"{first}{more}")


def _show_rows(name: str, rows: Sequence[Body]) -> None:
    """Draw rows: scores as bars, files each by itself, and all else in a table."""
    table = []
    for place, row in enumerate(rows):
        cells = {}
        for key, value in row.items():
            if _is_file(value):
                _show_file(f"{name}-{place}-{key}", value)
            elif isinstance(value, list | dict):
                cells[key] = str(value)
            else:
                cells[key] = value
        table.append(cells)
    if _has_scores(rows):
        _show_scores(rows)
        if all(len(row) <= 2 for row in rows):
            return
    st.dataframe(table, hide_index=True, alt=f"Table of {name}")


def _has_scores(rows: Sequence[Body]) -> bool:
    return all(_name_of(row) and isinstance(row.get("score"), float) for row in rows)


def _name_of(row: Body) -> str:
    """Return the text that names a row with a score, "" if it has none."""
    for key in ("label", "answer", "token_str", "text"):
        if isinstance(row.get(key), str):
            return str(row[key])
    return ""


def _show_scores(rows: Sequence[Body]) -> None:
    """Draw names with scores from 0 to 1 as bars."""
    for row in rows[:_MOST_BARS]:
        score = row["score"]
        st.progress(min(1.0, max(0.0, score)), text=f"{_plain(_name_of(row))} {score:.3f}")
    if len(rows) > _MOST_BARS:
        st.caption(f"{len(rows) - _MOST_BARS} more are in the JSON.")


def _plain(text: str) -> str:
    """Return a text in which Markdown finds nothing to draw."""
    for sign in "\\`*_{}[]<>#|$:~!":
        text = text.replace(sign, f"\\{sign}")
    return text


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and {"id", "media_type", "bytes"} <= value.keys()


@st.cache_data(max_entries=_FILES_KEPT, ttl=_KEPT_FOR, show_spinner=False)
def _bytes_of(url: str, key: str | None, file_id: str) -> bytes:
    """Return the bytes of a file. `url` and `key` tell apart what is kept."""
    return client().download(file_id)


def file_bytes(file_id: str) -> bytes:
    """Return the bytes of a file of the fleet. Raise ServerError."""
    return _bytes_of(client().url, st.session_state.get("key"), file_id)


def _show_file(name: str, file: Body) -> None:
    """Draw a file that a task has made, by its media type, with a button to download it."""
    media_type: str = file["media_type"]
    data = file_bytes(file["id"])
    kind = media_type.partition("/")[0]
    if kind == "image":
        st.image(shown(data), alt=_title(name))
    elif kind == "audio":
        st.audio(data, format=media_type)
    elif kind == "video":
        st.video(data, format=media_type)
    extension = mimetypes.guess_extension(media_type) or ".bin"
    if media_type == "model/ply":
        extension = ".ply"
    st.download_button(
        f"Download ({len(data):,} bytes)",
        data,
        file_name=f"{name}{extension}",
        mime=media_type,
        key=f"download_{file['id']}",
        on_click="ignore",
        icon=":material/download:",
    )


def _show_objects(objects: Sequence[Body], result: Body, sent: SentInputs) -> None:
    """Draw the boxes of objects into the picture, and their scores."""
    outlines = []
    for found in objects:
        box = found["box"]
        left, top, right, bottom = box["xmin"], box["ymin"], box["xmax"], box["ymax"]
        corners = ((left, top), (right, top), (right, bottom), (left, bottom))
        outlines.append(Outline(f"{found['label']} {found['score']:.2f}", corners))
    _show_outlines(outlines, sent)
    if not objects:
        st.caption("No objects were found.")
        return
    table = []
    for found in objects:
        table.append({"label": found["label"], "score": found["score"], **found["box"]})
    st.dataframe(table, hide_index=True, alt="Table of objects")


def _show_lines(lines: Sequence[Body], result: Body, sent: SentInputs) -> None:
    """Draw the lines of text into the picture, and their scores."""
    outlines = []
    for number, line in enumerate(lines, start=1):
        corners = tuple((x, y) for x, y in line["corners"])
        outlines.append(Outline(str(number), corners))
    _show_outlines(outlines, sent)
    if lines:
        _show_rows("lines", lines)


def _show_outlines(outlines: Sequence[Outline], sent: SentInputs) -> None:
    if sent.picture is not None:
        labels = ", ".join(outline.label for outline in outlines) or "nothing"
        st.image(outlined(sent.picture, outlines), alt=f"The picture, marked: {labels}")


def _show_segments(segments: Sequence[Body], result: Body, sent: SentInputs) -> None:
    """Draw the masks of segments into the picture, each in a colour, and how much they cover."""
    masks = [Mask(found["label"], file_bytes(found["mask"]["id"])) for found in segments]
    if sent.picture is not None:
        names = ", ".join(mask.label for mask in masks) or "nothing"
        st.image(masked(sent.picture, masks), alt=f"The picture, coloured: {names}")
    table = []
    for found in segments:
        table.append({"label": found["label"], "score": found["score"], "area": found["area"]})
    st.dataframe(table, hide_index=True, alt="Table of segments")


def _show_forecast(forecast: Sequence[float], result: Body, sent: SentInputs) -> None:
    """Draw the numbers that were given, those that are expected, and their quantiles."""
    before: list[float | None] = list(sent.series)
    # The curve goes on where the given one ends.
    hidden: list[float | None] = [None] * max(0, len(before) - 1)
    joint = before[-1:]
    curves: dict[str, list[float | None]] = {}
    if before:
        curves["given"] = before + [None] * len(forecast)
    curves["expected"] = [*hidden, *joint, *forecast]
    for quantile in result.get("quantiles", ()):
        curves[f"quantile {quantile['level']:g}"] = [*hidden, *joint, *quantile["values"]]
    st.line_chart(curves, x_label="step")
    numbers = ", ".join(_figure(number) for number in forecast[:_FIRST_NUMBERS])
    st.caption(f"{len(forecast)} numbers: {numbers}{', ...' * (len(forecast) > _FIRST_NUMBERS)}")


def _pass_over(value: Any, result: Body, sent: SentInputs) -> None:
    """Draw nothing: another part of the result has it drawn."""


_DRAWN_BY_NAME: Mapping[str, Callable[[Any, Body, SentInputs], None]] = {
    "objects": _show_objects,
    "lines": _show_lines,
    "segments": _show_segments,
    "forecast": _show_forecast,
    "quantiles": _pass_over,
    # How many numbers a vector has is told with it.
    "dimensions": _pass_over,
}
"""The parts of results that are drawn in their own way. All others are drawn by their shape."""
