"""`/hub/{model}`: Hugging Face's inference API, as `huggingface_hub.InferenceClient` calls it.

Tell the client the address of a model, `InferenceClient(model="http://host:8000/hub/NAME")`.
The task is the first that the model serves and that this API knows, or the one behind
`/pipeline/`. The body is that of `/api/inference`, or a picture or a sound as it is.
"""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import Annotated, Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from api.access.caller import caller_of
from api.deps import front_of
from api.endpoints.dialect import Dialect
from api.endpoints.endpoint import Endpoint, Post, TaskPlan
from api.endpoints.form_route import Handle, with_body
from api.endpoints.shapes import chosen
from api.http.error_format import API
from api.http.media_types import JSON, is_json, media_type_of
from api.http.request_state import request_state_of
from api.routes.inference_tasks import TASKS, model_of
from api.schemas.fields import refuse
from api.schemas.files import MadeFile, made_file
from api.schemas.hub import HubAnswer, HubFeatureRequest, HubSimilarityRequest
from api.schemas.inference_response import InferenceResponse
from api.stream.request_events import Outcome
from api.submit.limits import Limits
from api.submit.request_record import SubmittedWork
from api.submit.stored_inputs import byte_fields, input_label
from api.submit.uploads import ScannedUpload, admit, keep, pieces_of
from shared.artifacts.store import DEFAULT_MEDIA_TYPE
from shared.errors import InvalidRequest
from shared.messages import Embed, Embedded, ModelInfo
from shared.tasks.task_table import TASKS as INFOS
from shared.tasks.vectors import unpack

PREFIX = "/hub/"
_PIPELINE = "/pipeline/"
_SIMILARITY = "sentence-similarity"
_FEATURES = "feature-extraction"
Result = dict[str, Any]
Convert = Callable[[Result], Any]
"""A function from the result of `/api/inference` to the API's."""


def _labels(result: Result) -> Any:
    return result["labels"]


def _question_answers(result: Result) -> Any:
    answers = result["answers"]
    return answers[0] if len(answers) == 1 else answers


def _entities(result: Result) -> Any:
    found = []
    for entity in result["entities"]:
        found.append(
            {
                "entity_group": entity["label"],
                "score": entity["score"],
                "word": entity["text"],
                "start": entity["start"],
                "end": entity["end"],
            }
        )
    return found


def _fills(result: Result) -> Any:
    masks = result["masks"]
    return masks[0] if len(masks) == 1 else masks


def _transcript(result: Result) -> Any:
    answer = {"text": result["text"]}
    if result["parts"]:
        chunks = []
        for part in result["parts"]:
            chunks.append({"text": part["text"], "timestamp": [part["start"], part["end"]]})
        answer["chunks"] = chunks
    return answer


def _segments(result: Result) -> Any:
    segments = []
    for one in result["segments"]:
        segments.append({name: one[name] for name in ("label", "score", "mask")})
    return segments


CONVERTED: dict[str, Convert] = {
    "text-generation": lambda result: [{"generated_text": result["text"]}],
    "text-classification": lambda result: [result["labels"]],
    "summarization": lambda result: [{"summary_text": result["text"]}],
    "translation": lambda result: [{"translation_text": result["text"]}],
    "image-to-text": lambda result: [{"generated_text": result["text"]}],
    "question-answering": _question_answers,
    "visual-question-answering": lambda result: result["answers"],
    "token-classification": _entities,
    "zero-shot-classification": _labels,
    "fill-mask": _fills,
    "image-classification": _labels,
    "zero-shot-image-classification": _labels,
    "object-detection": lambda result: result["objects"],
    "image-segmentation": _segments,
    "audio-classification": _labels,
    "automatic-speech-recognition": _transcript,
}
"""The tasks of the API whose answers are JSON."""
FILES = ("text-to-speech", "text-to-image", "image-to-image")
"""The tasks whose answers are files."""


def _of_inference(endpoint: Endpoint, convert: Convert) -> Endpoint:
    """Return the endpoint of `/api/inference` with the answer of this API."""

    def render(work: SubmittedWork, outcomes: Sequence[Outcome]) -> HubAnswer:
        answer = endpoint.render(work, outcomes)
        assert isinstance(answer, InferenceResponse)
        result = answer.result.model_dump(mode="json")
        for segment, data in zip(result.get("segments", ()), outcomes[0].file_bytes, strict=False):
            segment["mask"] = base64.b64encode(data).decode()
        return HubAnswer(convert(result))

    return replace(
        endpoint,
        name=endpoint.name.replace("inference/", "hub/"),
        answer=HubAnswer,
        render=render,
        stream=None,
        with_file_bytes=True,
    )


def _sending_file(endpoint: Endpoint) -> Endpoint:
    """Return the endpoint of `/api/inference` with the first file of its task as the answer."""

    def render(work: SubmittedWork, outcomes: Sequence[Outcome]) -> MadeFile:
        return made_file(outcomes[0].artifacts[0])

    return replace(
        endpoint,
        name=endpoint.name.replace("inference/", "hub/"),
        answer=MadeFile,
        render=render,
        stream=None,
        sends_file=True,
    )


def _plan_features(body: HubFeatureRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    limits.check_count("inputs", len(body.texts))
    notes = {"is_list": not isinstance(body.inputs, str)}
    return TaskPlan([Embed(text, body.normalize) for text in body.texts], notes=notes)


def _features(work: SubmittedWork, outcomes: Sequence[Outcome]) -> HubAnswer:
    vectors = _vectors(outcomes)
    return HubAnswer(vectors if work.record.notes["is_list"] else vectors[0])


def _plan_similarity(body: HubSimilarityRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    limits.check_count("sentences", len(texts) - 1)
    return TaskPlan([Embed(text) for text in texts])


def _similarity(work: SubmittedWork, outcomes: Sequence[Outcome]) -> HubAnswer:
    source, *others = _vectors(outcomes)
    # The vectors have length 1: their products are the cosines of the angles between them.
    return HubAnswer([sum(a * b for a, b in zip(source, other, strict=True)) for other in others])


def _vectors(outcomes: Sequence[Outcome]) -> list[list[float]]:
    return [unpack(outcome.as_a(Embedded).vector) for outcome in outcomes]


def _of_texts(name: str, body: Any, plan: Any, render: Any) -> Endpoint:
    return Endpoint(
        name=f"hub/{name}",
        task="embed",
        body=body,
        answer=HubAnswer,
        plan=plan,
        render=render,
        errors=API,
        model_of=model_of,
    )


ENDPOINTS: dict[str, Endpoint] = {
    _FEATURES: _of_texts(_FEATURES, HubFeatureRequest, _plan_features, _features),
    _SIMILARITY: _of_texts(_SIMILARITY, HubSimilarityRequest, _plan_similarity, _similarity),
}
for _name, _convert in CONVERTED.items():
    ENDPOINTS[_name] = _of_inference(TASKS[_name], _convert)
for _name in FILES:
    ENDPOINTS[_name] = _sending_file(TASKS[_name])


def _task_of(model: ModelInfo, body: dict[str, Any]) -> str:
    """Return the task of a request to a model. Raise InvalidRequest for a model of none."""
    inputs = body.get("inputs")
    if isinstance(inputs, dict) and "source_sentence" in inputs:
        return _SIMILARITY
    for task in model.tasks:
        for tag in INFOS[task].pipeline_tags if task in INFOS else ():
            if tag in ENDPOINTS:
                return tag
    raise InvalidRequest(f"model: {model.id!r} does no task of this API.", field="model")


class HubRoute(APIRoute):
    """Puts the model of the path and its task into the body, and a file in the place of bytes."""

    def get_route_handler(self) -> Handle:
        handle = super().get_route_handler()

        async def handle_hub(request: Request) -> Response:
            front = front_of(request.app)
            name, _, task = request.path_params["id"].partition(_PIPELINE)
            model = await front.admission.find(name)
            content_type = request.headers.get("content-type", DEFAULT_MEDIA_TYPE)
            if is_json(content_type):
                body = _in_our_form(await _json_of(request))
                task = task or _task_of(model, body)
            else:
                task = task or _task_of(model, {})
                _check_takes_bytes(task)
                media_type = media_type_of(content_type, field="Content-Type")
                body = {"inputs": await _stored(request, media_type)}
            data = json.dumps(body | {"model_id": name, "task": task}).encode()
            request_state_of(request.scope).body = data
            return await handle(with_body(request, data))

        return handle_hub


def _check_takes_bytes(task: str) -> None:
    """Raise InvalidRequest for a task whose input is no picture and no sound."""
    if task in ENDPOINTS and not byte_fields(ENDPOINTS[task].body):
        raise InvalidRequest(f"{task} takes a body of Content-Type: {JSON}.", field="Content-Type")


async def _json_of(request: Request) -> dict[str, Any]:
    """Return a body in JSON. Raise InvalidRequest for one that is no object."""
    try:
        body = await request.json()
    except ValueError as error:
        raise InvalidRequest("The body is not valid JSON.") from error
    if not isinstance(body, dict):
        raise InvalidRequest("Expected an object in JSON.")
    return body


def _in_our_form(body: dict[str, Any]) -> dict[str, Any]:
    """Return a body of this API as one of `/api/inference`."""
    changed = dict(body)
    if "question" in changed:
        question = changed.pop("question")
        changed["inputs"] = {"image": changed.pop("image", None), "question": question}
    parameters = changed.get("parameters")
    if isinstance(parameters, dict) and isinstance(parameters.get("target_size"), dict):
        others = {name: value for name, value in parameters.items() if name != "target_size"}
        changed["parameters"] = others | parameters["target_size"]
    return changed


async def _stored(request: Request, media_type: str) -> str:
    """Keep the bytes of the body as an artifact, as they come, and return its id."""
    front = front_of(request.app)
    caller = await caller_of(request)
    await admit(front, caller, request)
    request_state_of(request.scope).is_admitted = True
    async with front.artifacts.upload(caller.tenant) as upload:
        scanned = ScannedUpload(front, upload)
        async for piece in pieces_of(request):
            await scanned.write(piece, media_type)
        artifact = await keep(front, request, upload, input_label(media_type), key="")
    return artifact.id


_bodies: list[Any] = [endpoint.body for endpoint in ENDPOINTS.values()]
_any_body: Any = reduce(or_, _bodies)


def _body_type(body: dict[str, Any]) -> Any:
    if body["task"] not in ENDPOINTS:
        raise refuse("task", f"expected one of {', '.join(ENDPOINTS)}")
    return ENDPOINTS[body["task"]].body


DIALECT = Dialect(
    (
        Post(
            PREFIX + "{id:path}",
            "hub_inference",
            "The task of a model, in the forms of Hugging Face's inference API.",
            tuple(ENDPOINTS.values()),
            tag="inference",
            body=Annotated[_any_body, chosen(_body_type, _bodies)],
            route_class=HubRoute,
        ),
    ),
    prefix=PREFIX,
    errors=API,
    raw_below=PREFIX,
)
