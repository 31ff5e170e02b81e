"""Bodies of the admin's routes to the catalogue of models."""

from typing import Literal

from pydantic import BaseModel

from api.schemas.fields import shown
from shared.settings.models import ModelEntry


class CatalogueEntry(ModelEntry):
    """A model to serve. `path` is as the workers see it."""

    model_config = ModelEntry.model_config | shown({"id": "maths", "path": "/models/maths"})


class CatalogueChange(BaseModel):
    """A change that was made to a model of the catalogue.

    `ordered` stands for an order to load, which each worker obeys in its own time.
    """

    model_id: str
    done: Literal["added", "changed", "removed", "pinned", "unpinned", "ordered"]


class CatalogueModel(BaseModel):
    """A model of the catalogue, as it was added."""

    model_id: str
    path: str
    runner: str
    is_pinned: bool


class CatalogueListing(BaseModel):
    """The models of the catalogue. `pinned` are the names of all pinned ones, also of others."""

    models: list[CatalogueModel]
    pinned: list[str]
