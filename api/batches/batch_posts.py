"""The paths that a batch may name as its endpoint: all that ask for work, but for pure streams."""

from api.endpoints.dialects import POSTS
from api.endpoints.endpoint import Post
from api.submit.stored_inputs import holds_bytes_anywhere


def _may_be_in_batch(post: Post) -> bool:
    # A path with parameters takes more than bodies.
    return not post.always_streams and "{" not in post.path and post.route_class is None


BATCH_POSTS: dict[str, Post] = {post.path: post for post in POSTS if _may_be_in_batch(post)}


def holds_files(path: str) -> bool:
    """Return whether bodies at a path may hold files in base64, and so many bytes."""
    post = BATCH_POSTS.get(path)
    if post is None:
        return False
    return any(holds_bytes_anywhere(endpoint.body) for endpoint in post.endpoints)
