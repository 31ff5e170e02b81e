"""The catalogue of models, for operators: which models the fleet knows, changed while it runs."""

from fastapi import APIRouter

from api.deps import Front, FrontDep
from api.endpoints.dialect import Access, Dialect
from api.redis_timeout import redis_answers
from api.routes.unload import ModelId
from api.schemas.catalogue import CatalogueChange, CatalogueEntry, CatalogueListing, CatalogueModel
from api.schemas.errors import ApiErrorBody, errors_of
from shared.errors import InvalidRequest, ModelNotFound
from shared.fleet.catalogue import Catalogue
from shared.queue import keys
from shared.settings.layers import SettingsError
from shared.tasks.model_options import check_options

router = APIRouter(prefix="/api/models", tags=["inference"], responses=errors_of(ApiErrorBody))


def _catalogue(front: Front) -> Catalogue:
    return Catalogue(front.broker.client(keys.PRESENCE))


@router.get("/catalogue")
@redis_answers()
async def listing(front: FrontDep) -> CatalogueListing:
    """List the models of the catalogue. Those of workers' settings are in `/api/models/status`."""
    content = await _catalogue(front).listing()
    models = []
    for name, entry in sorted(content.entries.items()):
        is_pinned = name in content.pinned
        models.append(
            CatalogueModel(model_id=name, path=entry.path, runner=entry.runner, is_pinned=is_pinned)
        )
    return CatalogueListing(models=models, pinned=sorted(content.pinned))


@router.post("/add")
@redis_answers()
async def add(body: CatalogueEntry, front: FrontDep) -> CatalogueChange:
    """Let every worker that can read the model's path serve it.

    A model of the same id is changed.
    """
    try:
        check_options([body], {})
    except SettingsError as error:
        raise InvalidRequest(str(error), field="options") from None
    if body.id in front.admission.experiments:
        raise InvalidRequest(f"id: {body.id!r} is the name of an experiment.", field="id")
    is_new = await _catalogue(front).add(body)
    front.fleet.invalidate()
    return CatalogueChange(model_id=body.id, done="added" if is_new else "changed")


@router.post("/remove/{model_id:path}")
@redis_answers()
async def remove(model_id: ModelId, front: FrontDep) -> CatalogueChange:
    """Let workers forget a model, once its jobs in hand have ended."""
    if not await _catalogue(front).remove(model_id):
        raise ModelNotFound(f"model_id: {model_id!r} is not in the catalogue.", field="model_id")
    front.fleet.invalidate()
    return CatalogueChange(model_id=model_id, done="removed")


@router.post("/pin/{model_id:path}")
@redis_answers()
async def pin(model_id: ModelId, front: FrontDep) -> CatalogueChange:
    """Keep a model in memory once it is there."""
    await _check_known(front, model_id)
    await _catalogue(front).pin(model_id, is_pinned=True)
    return CatalogueChange(model_id=model_id, done="pinned")


@router.post("/unpin/{model_id:path}")
@redis_answers()
async def unpin(model_id: ModelId, front: FrontDep) -> CatalogueChange:
    """Let a model make room for others again."""
    await _check_known(front, model_id)
    await _catalogue(front).pin(model_id, is_pinned=False)
    return CatalogueChange(model_id=model_id, done="unpinned")


@router.post("/load/{model_id:path}")
@redis_answers()
async def load(model_id: ModelId, front: FrontDep) -> CatalogueChange:
    """Have every worker that knows a model load it now, if it has room."""
    await _check_known(front, model_id)
    await _catalogue(front).order_load(model_id)
    return CatalogueChange(model_id=model_id, done="ordered")


async def _check_known(front: Front, model_id: str) -> None:
    """Raise ModelNotFound for a model that neither a worker nor the catalogue knows."""
    fleet = await front.fleet.now()
    if model_id not in fleet.models and model_id not in fleet.catalogued:
        raise ModelNotFound(f"model_id: {model_id!r} does not exist.", field="model_id")


DIALECT = Dialect(router=router, access=Access.ADMIN)
