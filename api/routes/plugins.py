"""`/api/plugins`: the plugins that this front knows."""

from fastapi import APIRouter
from pydantic import BaseModel

from api.endpoints.dialect import Dialect
from api.schemas.errors import ApiErrorBody, errors_of
from shared.plugins import Plugin, plugins

router = APIRouter(prefix="/api", tags=["inference"], responses=errors_of(ApiErrorBody))


class PluginBody(BaseModel):
    """A plugin, with the names of all that it adds."""

    name: str
    version: str
    about: str
    tasks: list[str]
    runners: list[str]
    endpoints: list[str]


class PluginListing(BaseModel):
    plugins: list[PluginBody]


@router.get("/plugins")
async def listing() -> PluginListing:
    """List the plugins of this front. Workers have their own, which should be the same."""
    return PluginListing(plugins=[_body(plugin) for plugin in plugins()])


def _body(plugin: Plugin) -> PluginBody:
    return PluginBody(
        name=plugin.name,
        version=plugin.version,
        about=plugin.about,
        tasks=plugin.names("tasks"),
        runners=plugin.names("runners"),
        endpoints=plugin.names("endpoints"),
    )


DIALECT = Dialect(router=router)
