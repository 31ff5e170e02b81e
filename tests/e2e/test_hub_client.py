"""`huggingface_hub.InferenceClient` gets from a fleet what `/api/inference` says, for every task."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from api.routes.hub import ENDPOINTS
from shared.settings.settings import DEFAULT_MODEL
from tests.fixtures.e2e.example_fleet import ONE_SHOTS, serving_examples
from tests.fixtures.e2e.serving import Serving
from tests.fixtures.pictures import encoded, picture
from tests.fixtures.sounds import tones, wav

PICTURE = encoded(picture(60, 40))
SOUND = wav(tones(440.0, 1320.0, seconds=0.5))
MODELS = {task: name for name, task in ONE_SHOTS.items()}
SAMPLE = DEFAULT_MODEL.name
KEY = {"X-API-Key": "boss"}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving_examples(tmp_path_factory.mktemp("examples")) as fleet:
        yield fleet


def client_of(fleet: Serving, model: str) -> InferenceClient:
    return InferenceClient(model=f"{fleet.url}/hub/{model}", token="boss", timeout=60)


def ours(fleet: Serving, task: str, inputs: Any, model: str = "", **options: Any) -> Any:
    """Return the result of `/api/inference`."""
    if isinstance(inputs, bytes):
        inputs = base64.b64encode(inputs).decode()
    body = {"task": task, "inputs": inputs, "model_id": model or MODELS[task], "options": options}
    answer = httpx.post(f"{fleet.url}/api/inference", json=body, headers=KEY, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["result"]


def labels(found: Any) -> list[tuple[str, float]]:
    return [(one["label"], pytest.approx(one["score"], rel=1e-4)) for one in found]


def test_labels_of_pictures_sounds_and_texts(fleet: Serving) -> None:
    expected = ours(fleet, "image-classification", PICTURE)["labels"]
    client = client_of(fleet, "pictures")
    assert labels(client.image_classification(PICTURE)) == labels(expected)
    [best] = client.image_classification(PICTURE, top_k=1)
    assert best.label == expected[0]["label"]

    found = client_of(fleet, "sounds").audio_classification(SOUND)
    assert labels(found) == labels(ours(fleet, "audio-classification", SOUND)["labels"])

    among = ["a cat", "a cup"]
    found = client_of(fleet, "clip").zero_shot_image_classification(PICTURE, among)
    expected = ours(fleet, "zero-shot-image-classification", PICTURE, candidate_labels=among)[
        "labels"
    ]
    assert labels(found) == labels(expected)

    found = client_of(fleet, "judge").zero_shot_classification("good film", among)
    expected = ours(fleet, "zero-shot-classification", "good film", candidate_labels=among)
    assert labels(found) == labels(expected["labels"])

    label = client_of(fleet, "reranker").text_classification("good film")
    expected = ours(fleet, "text-classification", "good film", model="reranker")["labels"]
    assert labels(label) == labels(expected)


def test_places_in_pictures(fleet: Serving) -> None:
    found = client_of(fleet, "detector").object_detection(PICTURE, threshold=0.1)
    expected = ours(fleet, "object-detection", PICTURE, threshold=0.1)["objects"]
    assert labels(found) == labels(expected)
    assert found
    assert [vars(one.box) for one in found] == [one["box"] for one in expected]

    segments = client_of(fleet, "segmenter").image_segmentation(PICTURE)
    expected = ours(fleet, "image-segmentation", PICTURE)["segments"]
    assert [one.label for one in segments] == [one["label"] for one in expected]
    for segment, one in zip(segments, expected, strict=True):
        url = f"{fleet.url}/v1/artifacts/{one['mask']['id']}"
        mask = Image.open(io.BytesIO(httpx.get(url, headers=KEY, timeout=60).content))
        assert isinstance(segment.mask, Image.Image)
        assert np.array_equal(np.asarray(segment.mask), np.asarray(mask))


def test_words(fleet: Serving) -> None:
    text = "good film"
    found = client_of(fleet, "names").token_classification(text)
    for one, entity in zip(
        found, ours(fleet, "token-classification", text)["entities"], strict=True
    ):
        assert (one.entity_group, one.word) == (entity["label"], entity["text"])
        assert (one.start, one.end) == (entity["start"], entity["end"])

    found = client_of(fleet, "bert").fill_mask("a [MASK] film", top_k=2)
    [expected] = ours(fleet, "fill-mask", "a [MASK] film", top_k=2)["masks"]
    assert [one.sequence for one in found] == [one["sequence"] for one in expected]

    found = client_of(fleet, "reader").question_answering("good", context="a very good film")
    inputs = {"question": "good", "context": "a very good film"}
    [expected] = ours(fleet, "question-answering", inputs)["answers"]
    assert (found.answer, found.start) == (expected["answer"], expected["start"])
    several = client_of(fleet, "reader").question_answering(
        "good", context="a very good film", top_k=3
    )
    assert len(several) == 3


def test_writing(fleet: Serving) -> None:
    text = "good"
    summary = client_of(fleet, "summarizer").summarization(text)
    assert summary.summary_text == ours(fleet, "summarization", text)["text"] != ""
    translation = client_of(fleet, "translator").translation(text, src_lang="en", tgt_lang="fr")
    expected = ours(fleet, "translation", text, src_lang="en", tgt_lang="fr")
    assert translation.translation_text == expected["text"]
    caption = client_of(fleet, "captioner").image_to_text(PICTURE)
    assert caption.generated_text == ours(fleet, "image-to-text", PICTURE)["text"]

    answers = client_of(fleet, "observer").visual_question_answering(PICTURE, "good film")
    inputs = {"image": base64.b64encode(PICTURE).decode(), "question": "good film"}
    expected = ours(fleet, "visual-question-answering", inputs)["answers"]
    assert [one.answer for one in answers] == [one["answer"] for one in expected]

    sampled = {"do_sample": False, "max_new_tokens": 8}
    generated = client_of(fleet, SAMPLE).text_generation("Compute: 3 + 4", temperature=0, **sampled)
    expected = ours(
        fleet, "text-generation", "Compute: 3 + 4", SAMPLE, temperature=0, max_new_tokens=8
    )
    assert generated == expected["text"]


def test_speech(fleet: Serving) -> None:
    heard = client_of(fleet, "whisper").automatic_speech_recognition(SOUND)
    assert heard.text == ours(fleet, "automatic-speech-recognition", SOUND)["text"] != ""
    spoken = client_of(fleet, "speaker").text_to_speech("good film", extra_body={"seed": 7})
    result = ours(fleet, "text-to-speech", "good film", seed=7)
    url = f"{fleet.url}/v1/artifacts/{result['audio']['id']}"
    assert spoken == httpx.get(url, headers=KEY, timeout=60).content


def test_pictures(fleet: Serving) -> None:
    few = {"num_inference_steps": 2, "seed": 7}
    made = client_of(fleet, "painter").text_to_image("good", width=64, height=32, **few)
    result = ours(fleet, "text-to-image", "good", "painter", width=64, height=32, **few)
    assert made.size == (64, 32)
    assert_same_picture(fleet, made, result)

    painter = client_of(fleet, "painter/pipeline/image-to-image")
    changed = painter.image_to_image(
        PICTURE, prompt="good", target_size={"width": 64, "height": 32}, **few
    )
    result = ours(
        fleet, "image-to-image", PICTURE, "painter", prompt="good", width=64, height=32, **few
    )
    assert_same_picture(fleet, changed, result)


def assert_same_picture(fleet: Serving, image: Image.Image, result: Any) -> None:
    url = f"{fleet.url}/v1/artifacts/{result['images'][0]['image']['id']}"
    expected = Image.open(io.BytesIO(httpx.get(url, headers=KEY, timeout=60).content))
    assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_vectors(fleet: Serving) -> None:
    client = client_of(fleet, f"{SAMPLE}/pipeline/feature-extraction")
    texts = ["3 + 4", "7 - 2"]
    vectors = [ours(fleet, "feature-extraction", text, SAMPLE)["embedding"] for text in texts]
    assert client.feature_extraction(texts[0]).tolist() == pytest.approx(vectors[0], rel=1e-5)
    assert client.feature_extraction(texts).tolist() == [  # type: ignore[arg-type]
        pytest.approx(vector, rel=1e-5) for vector in vectors
    ]
    [cosine] = client_of(fleet, SAMPLE).sentence_similarity(texts[0], [texts[1]])
    assert cosine == pytest.approx(float(np.dot(vectors[0], vectors[1])), rel=1e-4)


def test_what_is_refused(fleet: Serving) -> None:
    """With the status and the words of the fleet."""
    for model, words in (
        ("nobody", "does not exist"),
        ("depth", "does no task of this API"),
        (f"{SAMPLE}/pipeline/sing", "expected one of"),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            client_of(fleet, model).text_classification("a")
        assert words in error.value.response.text
    with pytest.raises(HfHubHTTPError, match="expected a picture"):
        client_of(fleet, "pictures").image_classification(b"no picture")
    plain = {"Content-Type": "text/plain"}
    answer = httpx.post(
        f"{fleet.url}/hub/bert", content=b"a [MASK]", headers=KEY | plain, timeout=60
    )
    assert answer.status_code == 400, answer.text
    assert "takes a body of Content-Type: application/json" in answer.text
    body = {"inputs": "a", "parameters": [1]}
    answer = httpx.post(f"{fleet.url}/hub/bert", json=body, headers=KEY, timeout=60)
    assert answer.status_code == 422, answer.text
    # As curl sends it with -d alone.
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = httpx.post(
        f"{fleet.url}/hub/bert",
        content=b'{"inputs": "a [MASK]"}',
        headers=KEY | form,
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    url = f"{fleet.url}/hub/pictures"
    headers = KEY | {"Content-Type": "application/json"}
    for body in (b"{", b"[]"):
        answer = httpx.post(url, content=body, headers=headers, timeout=60)
        assert answer.status_code == 400, answer.text


def test_every_task_is_tried() -> None:
    with open(__file__) as file:
        source = file.read()
    for task in ENDPOINTS:
        assert f".{task.replace('-', '_')}(" in source, task
