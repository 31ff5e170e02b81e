"""Dialects: groups of routes that belong together, and the callers that may call them."""

from dataclasses import dataclass
from enum import Enum

from fastapi import APIRouter

from api.endpoints.endpoint import Post
from api.http.error_format import PLAIN, ErrorFormat


class Access(Enum):
    """The callers that may call a route."""

    OPEN = "anybody; keys are not looked at"
    CALLER = "anybody, or callers with a key where keys are required"
    KEY = "callers with a key"
    ADMIN = "callers with an admin key"


@dataclass(frozen=True)
class Dialect:
    """Routes that ask for work (`posts`), and all other routes (`router`).

    `access` is that of `router`; any caller may ask for work. Probes (`are_probes`) are not traced,
    and are logged at the level debug alone. `uploads` are paths whose bodies are handed on as they
    come: their routes bound what they keep in memory. So are bodies that are no JSON at paths that
    begin with `raw_below`. At the paths of `any_body` the bodies of all `posts` may be sent. Errors at
    paths that begin with `prefix` have the format `errors`, also where no route is found.
    """

    posts: tuple[Post, ...] = ()
    router: APIRouter | None = None
    access: Access = Access.CALLER
    are_probes: bool = False
    uploads: frozenset[str] = frozenset()
    raw_below: str = ""
    any_body: frozenset[str] = frozenset()
    prefix: str = ""
    errors: ErrorFormat = PLAIN
