"""All routes of the front, asked by path: what is done there, by whom, and in which form errors are told."""

from collections.abc import Iterable
from dataclasses import dataclass

from fastapi import APIRouter
from fastapi.routing import APIRoute

from api import document
from api.dialect import Dialect, Door
from api.endpoint import Post
from api.error_format import PLAIN, ErrorFormat
from api.handler import add_route

METRICS = "/metrics"
_DOCUMENTS = frozenset({"/docs", "/redoc", document.PATH})


@dataclass(frozen=True)
class Entry:
    route: APIRoute
    door: Door
    is_probe: bool = False


class RouteTable:
    """Of these dialects, whose routes are tried in their order."""

    def __init__(self, dialects: Iterable[Dialect]) -> None:
        self.routers: list[tuple[APIRouter, Door]] = []
        self.entries: list[Entry] = []
        self.posts: list[Post] = []
        self._errors_below: dict[str, ErrorFormat] = {}
        self._errors_at: dict[str, ErrorFormat] = {}
        for dialect in dialects:
            if dialect.router is not None:
                self._add(dialect.router, dialect.door, is_probe=dialect.are_probes)
            asking = APIRouter()
            for post in dialect.posts:
                add_route(asking, post)
                self._errors_at[post.path] = post.errors
            self.posts += dialect.posts
            self._add(asking, Door.CALLER)
            if dialect.prefix:
                self._errors_below[dialect.prefix] = dialect.errors

    @property
    def endpoint_paths(self) -> set[str]:
        """Those of the endpoints, at which rates may be set."""
        return {post.path for post in self.posts}

    def at(self, path: str) -> list[APIRoute]:
        """Those that some method finds at this path, in the order in which they are tried."""
        return [entry.route for entry in self._at(path)]

    def allowed(self, path: str) -> list[str]:
        """What is done at this path, besides telling so by OPTIONS; empty where there is nothing."""
        if path in _DOCUMENTS:
            return ["GET", "HEAD"]
        methods = {method for route in self.at(path) for method in route.methods or ()}
        if "GET" in methods:
            methods.add("HEAD")
        return sorted(methods)

    def is_callers(self, path: str) -> bool:
        """Whether the path is one for callers, or a document: neither health, metrics nor an operator's."""
        return {entry.door for entry in self._at(path)} == {Door.CALLER} or path in _DOCUMENTS

    def is_probe(self, path: str) -> bool:
        return any(entry.is_probe for entry in self._at(path))

    def errors_at(self, path: str) -> ErrorFormat:
        """That of the dialect whose path it is, or begins like it."""
        if path in self._errors_at:
            return self._errors_at[path]
        prefix = max((prefix for prefix in self._errors_below if path.startswith(prefix)), key=len, default="")
        return self._errors_below.get(prefix, PLAIN)

    def _at(self, path: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.route.path_regex.match(path)]

    def _add(self, router: APIRouter, door: Door, *, is_probe: bool = False) -> None:
        routes = [route for route in router.routes if isinstance(route, APIRoute)]
        if routes:
            self.routers.append((router, door))
            self.entries += [Entry(route, door, is_probe) for route in routes]
