"""Queues of arq: their names, and the values in Redis, which are JSON and never pickle.

All keys of arq carry one hash tag, so that it also works on a Redis cluster.
"""

import json
from typing import Any

from arq.connections import ArqRedis
from arq.constants import abort_jobs_ss

from shared.queue.broker import Broker

# The name of this key of arq is fixed and has no hash tag. With the name as the hash tag of the
# other keys, all lie in one slot of a cluster.
TAG = abort_jobs_ss


def queue_name(kind: str) -> str:
    """Return the key of a queue."""
    return f"aios:{{{TAG}}}:{kind}"


def open_queue(broker: Broker, name: str) -> ArqRedis:
    """Return arq's view of a queue. It uses the broker's connections and never closes them."""
    return ArqRedis(
        broker.client(TAG).connection_pool, to_json, json.loads, default_queue_name=name
    )


def to_json(value: Any) -> bytes:
    """Return a value as the JSON that arq stores. An exception becomes its text."""
    return json.dumps(value, default=repr).encode()
