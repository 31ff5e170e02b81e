"""The fields of a task's form, drawn by their kinds."""

from dataclasses import dataclass
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from scripts.ui.client import Body
from scripts.ui.session import LINK
from scripts.ui.task_forms import FormField, Media, TaskForm

_FILE_TYPES: dict[Media, list[str] | None] = {
    "image": ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"],
    "audio": ["wav", "mp3", "flac", "ogg", "aac", "aiff", "m4a", "mp4", "mkv", "webm"],
    "video": ["mp4", "mov", "mkv", "webm", "avi"],
    "any": None,
}
# A slider is for numbers that lie as near as this.
_NEAR = 5.0


@dataclass(frozen=True)
class File:
    """A file that a person has chosen: its bytes, or the id of one that the fleet has."""

    name: str = ""
    data: bytes = b""
    media_type: str = ""
    id: str = ""


def draw_fields(form: TaskForm) -> Body:
    """Draw the fields, and return what they hold by their names: values, texts and files."""
    values: Body = {}
    options = []
    for field in form.fields:
        if field.is_required:
            values[field.name] = _draw_field(form, field, st.container())
        else:
            options.append(field)
    if not options:
        return values
    with st.expander("Options", icon=":material/tune:"):
        columns = st.columns(2)
        for place, field in enumerate(options):
            values[field.name] = _draw_field(form, field, columns[place % 2])
    return values


def _draw_field(form: TaskForm, field: FormField, place: DeltaGenerator) -> Any:
    key = f"{form.name}.{field.name}"
    about = field.about or None
    if field.kind == "file":
        return _draw_file(field, place, key)
    if field.kind == "switch":
        return place.checkbox(field.label, bool(field.initial), key=key, help=about, **LINK)
    if field.kind == "choice":
        return _draw_choice(field, place, key)
    if field.kind in ("integer", "number"):
        return _draw_number(field, place, key)
    if field.kind == "line":
        return place.text_input(field.label, field.initial_text, key=key, help=about, **LINK)
    if field.kind == "lines":
        about = f"{field.about} One a line.".strip()
    height = 120 if field.is_required else 80
    return place.text_area(
        field.label, field.initial_text, key=key, help=about, height=height, **LINK
    )


def _draw_choice(field: FormField, place: DeltaGenerator, key: str) -> Any:
    index = None
    if field.initial in field.choices:
        index = field.choices.index(field.initial)
    return place.selectbox(
        field.label,
        field.choices,
        index=index,
        key=key,
        help=field.about or None,
        placeholder="the default",
        format_func=_choice_text,
        **LINK,
    )


def _choice_text(choice: Any) -> str:
    if isinstance(choice, bool):
        return "yes" if choice else "no"
    return str(choice)


def _draw_number(field: FormField, place: DeltaGenerator, key: str) -> Any:
    """Draw a number. It is a slider where its bounds are near, else a field to type in."""
    about = field.about or None
    if field.kind == "integer":
        return place.number_input(
            field.label,
            _whole(field.least),
            _whole(field.most),
            field.initial,
            step=1,
            key=key,
            help=about,
            placeholder="the default",
            **LINK,
        )
    least = _real(field.least)
    most = _real(field.most)
    initial = _real(field.initial)
    are_bounds_near = least is not None and most is not None and most - least <= _NEAR
    if are_bounds_near and initial is not None:
        return place.slider(
            field.label, least, most, initial, step=0.01, key=key, help=about, **LINK
        )
    return place.number_input(
        field.label,
        least,
        most,
        initial,
        step=0.05,
        key=key,
        help=about,
        placeholder="the default",
        **LINK,
    )


def _whole(bound: float | None) -> int | None:
    return None if bound is None else int(bound)


def _real(bound: float | None) -> float | None:
    return None if bound is None else float(bound)


def _draw_file(field: FormField, place: DeltaGenerator, key: str) -> File | None:
    """Draw the choice of a file, and the file."""
    uploaded = place.file_uploader(field.label, type=_FILE_TYPES[field.media], key=key)
    file_id = place.text_input(
        f"{field.label}, or the id of a file that the fleet has", key=f"{key}.id", **LINK
    )
    if uploaded is None:
        return File(id=file_id) if file_id else None
    data = uploaded.getvalue()
    if field.media == "image":
        place.image(data, alt=f"The picture {uploaded.name}", width=320)
    elif field.media == "audio":
        place.audio(data, format=uploaded.type)
    elif field.media == "video":
        place.video(data, format=uploaded.type)
    return File(uploaded.name, data, media_type=uploaded.type)
