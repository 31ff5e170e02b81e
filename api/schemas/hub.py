"""Answers in the forms of Hugging Face's inference API, which `huggingface_hub` reads."""

from typing import Any

from pydantic import RootModel

from api.schemas.fields import NonEmpty, RequestBody
from api.schemas.inference import TaskRequest


class HubAnswer(RootModel[Any]):
    """An answer: a list or an object, whose form depends on the task."""


class HubFeatureRequest(TaskRequest):
    """Texts whose vectors are asked for. The API has the options beside the texts."""

    inputs: NonEmpty | list[NonEmpty]
    normalize: bool = True

    @property
    def texts(self) -> list[str]:
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs


class Sentences(RequestBody):
    source_sentence: NonEmpty
    sentences: list[NonEmpty]


class HubSimilarityRequest(TaskRequest):
    """A sentence, and those that it is compared with."""

    inputs: Sentences
