"""Forms of tasks as they are read from the OpenAPI document, and pictures with findings."""

import json
from io import BytesIO
from typing import Any

import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from api.endpoints.dialects import POSTS
from api.endpoints.endpoint import Endpoint
from scripts.tools.api_page import openapi
from scripts.ui.pictures import Mask, Outline, colour_of, masked, outlined, shown
from scripts.ui.task_forms import FieldError, FormField, TaskForm, forms_of
from shared.tasks.task_table import TASKS
from tests.fixtures.pictures import encoded

ASKED_FOR = {
    endpoint.task for post in POSTS for endpoint in post.endpoints if isinstance(endpoint, Endpoint)
}
"""The tasks that some endpoint asks for."""
TIED = ("options.n", "noise")
"""Fields whose bounds are nearer than the schema says: one choice only, and no noise of 0."""
FILE_ID = "file-0123456789abcdef0123456789abcdef"


# The document as a client gets it.
FORMS = forms_of(json.loads(json.dumps(openapi())))


def initial_values(form: TaskForm) -> dict[str, Any]:
    """Return what a person sends who changes nothing, and chooses a file where one is needed."""
    values = {}
    for field in form.fields:
        if field.kind == "file":
            values[field.name] = FILE_ID
        elif field.kind in ("text", "line", "lines", "series", "json"):
            values[field.name] = field.value_of(field.initial_text)
        else:
            values[field.name] = field.initial
    return values


def accepts(form: TaskForm, body: dict[str, Any]) -> bool:
    [post] = [post for post in POSTS if post.path == form.path]
    try:
        parsed = TypeAdapter(post.body_type).validate_python(body)
    except ValidationError:
        return False
    endpoint = post.endpoint_of(parsed)
    assert isinstance(endpoint, Endpoint)
    assert endpoint.task == form.task
    return True


def test_every_task_that_can_be_asked_for_has_a_form() -> None:
    """A row of the table of tasks without a form would be one that the page forgets."""
    assert {form.task for form in FORMS.values()} == ASKED_FOR
    # No endpoint of ours asks for `read`.
    assert TASKS.keys() - ASKED_FOR == {"read"}
    local = [form for form in FORMS.values() if form.path == "/api/inference"]
    assert len(local) >= 30
    assert all(form.about.endswith(".") for form in FORMS.values())


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_form_as_it_is_drawn_is_a_valid_body(form: TaskForm) -> None:
    values = initial_values(form)
    body = form.body(values)
    assert accepts(form, body), body
    for field in form.fields:
        is_number = field.kind in ("integer", "number")
        for bound in (field.least, field.most):
            if bound == field.default or field.name in TIED:
                continue
            if is_number and bound is not None:
                value = int(bound) if field.kind == "integer" else bound
                within = form.body(values | _enough(field) | {field.name: value})
                assert accepts(form, within), within
        if is_number and field.least is not None:
            assert not accepts(form, form.body(values | {field.name: field.least - 1}))
        for choice in field.choices:
            assert accepts(form, form.body(values | {field.name: choice})), choice


def _enough(field: FormField) -> dict[str, Any]:
    """Return the values of other fields that a bound of this one needs."""
    if field.name == "options.min_tokens":
        return {"options.max_new_tokens": 2**31 - 1}
    if field.name == "samples":
        return {"noise": 0.5}
    return {}


def test_what_is_left_as_it_is_is_not_sent() -> None:
    """So a default of the server's is the server's."""
    form = FORMS["text-generation"]
    body = form.body(initial_values(form))
    assert body == {"task": "text-generation", "stream": True, "inputs": "Compute: 347 + 285"}
    body = form.body({"inputs": "a", "options.temperature": 0.5, "options.top_p": 1.0})
    assert body["options"] == {"temperature": 0.5}


def test_texts_become_values() -> None:
    """Lists are written one a line, numbers side by side, and CSV is left to the server."""
    fields = {field.name: field for field in FORMS["text-generation"].fields}
    assert fields["options.stop"].value_of("a b\n\nc") == ["a b", "c"]
    assert fields["options.stop_token_ids"].value_of("1, 2 3") == [1, 2, 3]
    assert fields["options.logit_bias"].value_of('{"5": -1}') == {"5": -1}
    assert fields["options.stop"].value_of(" \n") is None
    [series, _] = FORMS["time-series-forecasting"].fields
    assert series.value_of("1 2.5") == [1, 2.5]
    assert series.value_of("day,price\n1,10\n") == "day,price\n1,10\n"
    with pytest.raises(FieldError, match="'x' is not a number"):
        series.value_of("1 x")
    with pytest.raises(FieldError, match="expected JSON"):
        fields["options.logit_bias"].value_of("{")
    [grid] = [field for field in FORMS["solve"].fields if field.name == "grid"]
    assert grid.value_of("1.") == "1."
    assert grid.value_of("1.\n.2") == ["1.", ".2"]


def test_files_are_of_the_kind_that_an_example_has() -> None:
    media = {}
    for form in FORMS.values():
        for field in form.fields:
            if field.kind == "file":
                media[form.name] = field.media
    assert media["object-detection"] == "image"
    assert media["image-text-to-text"] == "image"
    assert media["automatic-speech-recognition"] == "audio"
    assert media["video-classification"] == "video"
    assert "any" not in media.values()


def _png(size: tuple[int, int], colour: str) -> bytes:
    return encoded(Image.new("RGB", size, colour))


def test_outlines_and_masks_lie_where_they_belong() -> None:
    """A small picture is enlarged, and the corners with it."""
    square = ((10, 10), (20, 10), (20, 20), (10, 20))
    drawn = outlined(_png((40, 20), "black"), [Outline("cat", square)])
    assert drawn.size == (480, 240)
    colour = Image.new("RGB", (1, 1), colour_of(0)).getpixel((0, 0))
    for x, y in ((120, 180), (240, 180), (180, 239)):
        assert drawn.getpixel((x, y)) == colour
    assert drawn.getpixel((180, 180)) == (0, 0, 0)

    left = Image.new("L", (40, 20), 0)
    left.paste(255, (0, 0, 20, 20))
    drawn = masked(_png((40, 20), "black"), [Mask("wall", encoded(left))])
    assert drawn.getpixel((10, 10)) != (0, 0, 0)
    assert drawn.getpixel((470, 10)) == (0, 0, 0)
    # The label is below, in the same colour.
    assert drawn.height > 240
    assert drawn.getpixel((470, 250)) == colour


def test_a_map_of_16_bits_is_shown_with_8() -> None:
    data = BytesIO()
    depths = Image.new("I;16", (2, 1))
    depths.putpixel((1, 0), 65535)
    depths.save(data, "PNG")
    picture = shown(data.getvalue())
    assert picture.mode == "L"
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == [0, 255]
