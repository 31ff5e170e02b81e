"""What a dialect adds to the front, and who may call it."""

from dataclasses import dataclass
from enum import Enum

from fastapi import APIRouter

from api.endpoint import Post
from api.error_format import PLAIN, ErrorFormat


class Door(Enum):
    OPEN = "anybody, without a look at keys"
    CALLER = "anybody, or whoever has a key where keys are required"
    KEY = "whoever has a key"
    ADMIN = "whoever has an admin key"


@dataclass(frozen=True)
class Dialect:
    """`posts` ask for work; `router` has all other routes.

    `door` is before those of `router`: work is asked for by callers. Where `are_probes`, machines ask all day, and
    neither the log nor traces tell of it. What is told of errors at paths that begin with `prefix` has the form
    `errors`, also where there is no such route.
    """

    posts: tuple[Post, ...] = ()
    router: APIRouter | None = None
    door: Door = Door.CALLER
    are_probes: bool = False
    prefix: str = ""
    errors: ErrorFormat = PLAIN
