"""The dialects that ask for work. A new one is a file of rows, and a line here."""

from api.endpoints.dialect import Dialect
from api.endpoints.endpoint import Post
from api.routes import (
    audio,
    chat,
    echo_task,
    embeddings,
    generate,
    hrm,
    hub,
    images,
    inference,
    moderations,
    openai,
    puzzles,
    rerank,
    simple_foundation,
    tgi,
    tokens,
)
from shared import plugins

_BUILT_IN = (
    generate.DIALECT,
    openai.DIALECT,
    hrm.DIALECT,
    chat.DIALECT,
    embeddings.DIALECT,
    audio.DIALECT,
    images.DIALECT,
    rerank.DIALECT,
    moderations.DIALECT,
    tokens.DIALECT,
    simple_foundation.DIALECT,
    puzzles.DIALECT,
    tgi.DIALECT,
    inference.DIALECT,
    hub.DIALECT,
    echo_task.DIALECT,
)
DIALECTS: tuple[Dialect, ...] = (*_BUILT_IN, *plugins.load("aios.endpoints").values())
POSTS: list[Post] = []
for _dialect in DIALECTS:
    POSTS += _dialect.posts
