"""All routes of the front by path: their methods, their access, the format of their errors."""

from collections.abc import Iterable
from dataclasses import dataclass

from fastapi import APIRouter
from fastapi.routing import APIRoute

from api.endpoints.dialect import Access, Dialect
from api.endpoints.endpoint import Post
from api.endpoints.form_route import form_fields_of
from api.endpoints.handler import add_route
from api.http import document
from api.http.error_format import PLAIN, ErrorFormat
from api.http.media_types import is_form, is_json
from api.submit.stored_inputs import holds_bytes_anywhere

METRICS = "/metrics"
_DOCUMENTS = frozenset({"/docs", "/redoc", document.PATH})


@dataclass(frozen=True)
class Entry:
    """A route, and the callers that may call it."""

    route: APIRoute
    access: Access


class RouteTable:
    """The routes of some dialects, tried in their order."""

    def __init__(self, dialects: Iterable[Dialect]) -> None:
        self.routers: list[tuple[APIRouter, Access]] = []
        self.entries: list[Entry] = []
        self.posts: list[Post] = []
        self.probe_paths: set[str] = set()
        self.upload_paths: set[str] = set()
        self.form_paths: set[str] = set()
        self.file_paths: set[str] = set()
        self.raw_prefixes: list[str] = []
        self._errors_below: dict[str, ErrorFormat] = {}
        self._errors_at: dict[str, ErrorFormat] = {}
        for dialect in dialects:
            if dialect.router is not None:
                self._add(dialect.router, dialect.access)
                if dialect.are_probes:
                    self.probe_paths.update(route.path for route in _routes_of(dialect.router))
            self.upload_paths |= dialect.uploads
            self.file_paths |= dialect.any_body
            if dialect.raw_below:
                self.raw_prefixes.append(dialect.raw_below)
            work_router = APIRouter()
            for post in dialect.posts:
                add_route(work_router, post)
                self._errors_at[post.path] = post.errors
                bodies = [endpoint.body for endpoint in post.endpoints]
                if form_fields_of(bodies):
                    self.form_paths.add(post.path)
                if any(map(holds_bytes_anywhere, bodies)):
                    self.file_paths.add(post.path)
            self.posts += dialect.posts
            self._add(work_router, Access.CALLER)
            if dialect.prefix:
                self._errors_below[dialect.prefix] = dialect.errors
        # Most requests name a path without parameters: these are looked up, not tried in turn.
        self._fixed: dict[str, list[Entry]] = {}
        for entry in self.entries:
            if not entry.route.param_convertors:
                self._fixed[entry.route.path] = self._matching(entry.route.path)

    @property
    def endpoint_paths(self) -> set[str]:
        """The paths of endpoints. Settings may give a rate to each."""
        return {post.path for post in self.posts}

    def holds_files(self, path: str) -> bool:
        """Return whether bodies in JSON at a path may hold files in base64."""
        is_raw = any(path.startswith(prefix) for prefix in self.raw_prefixes)
        return is_raw or path in self.file_paths

    def takes_file(self, path: str, content_type: str) -> bool:
        """Return whether a body that is posted at a path is a file, or a form with files."""
        if path in self.upload_paths:
            return True
        if path in self.form_paths:
            return is_form(content_type)
        is_raw = any(path.startswith(prefix) for prefix in self.raw_prefixes)
        return is_raw and not is_json(content_type)

    def at(self, path: str) -> list[APIRoute]:
        """Return the routes at this path, of any method, in the order in which they are tried."""
        return [entry.route for entry in self._at(path)]

    def find(self, method: str, path: str) -> Entry | None:
        """Return the route that the router takes for a request; None where there is none."""
        for entry in self._at(path):
            if method in (entry.route.methods or ()):
                return entry
        return None

    def allowed(self, path: str) -> list[str]:
        """Return the methods at this path, without OPTIONS; none where there is no route."""
        if path in _DOCUMENTS:
            return ["GET", "HEAD"]
        methods: set[str] = set()
        for route in self.at(path):
            methods.update(route.methods or ())
        if "GET" in methods:
            methods.add("HEAD")
        return sorted(methods)

    def is_callers(self, path: str) -> bool:
        """Return whether the path is one for callers, or that of a document.

        Paths of health, of metrics and for operators are not.
        """
        if path in _DOCUMENTS:
            return True
        return {entry.access for entry in self._at(path)} == {Access.CALLER}

    def errors_at(self, path: str) -> ErrorFormat:
        """Return the format of errors at a path.

        It is that of the endpoint there, else of the dialect with the longest matching prefix.
        """
        if path in self._errors_at:
            return self._errors_at[path]
        longest = ""
        for prefix in self._errors_below:
            if path.startswith(prefix) and len(prefix) > len(longest):
                longest = prefix
        return self._errors_below.get(longest, PLAIN)

    def _at(self, path: str) -> list[Entry]:
        if path in self._fixed:
            return self._fixed[path]
        return self._matching(path)

    def _matching(self, path: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.route.path_regex.match(path)]

    def _add(self, router: APIRouter, access: Access) -> None:
        routes = _routes_of(router)
        if routes:
            self.routers.append((router, access))
            self.entries += [Entry(route, access) for route in routes]


def _routes_of(router: APIRouter) -> list[APIRoute]:
    return [route for route in router.routes if isinstance(route, APIRoute)]
