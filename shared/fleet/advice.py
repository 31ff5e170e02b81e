"""Advice to operators at the start: one line for each thing around the fleet that is wrong.

Nothing is changed, and nothing is refused.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from redis.exceptions import ResponseError

from shared.queue.broker import CONNECT_TIMEOUT_S, UNAVAILABLE, Broker
from shared.telemetry.logging_setup import fields

logger = logging.getLogger("aios.advice")

# Connections to Redis, libraries, and the callers of jobs that run rather than wait.
_OTHER_FILES = 512


def advise(lines: Sequence[str]) -> None:
    """Log each line of advice."""
    for line in lines:
        logger.warning("advice", extra=fields(advice=line))


def on_open_files(limit: int | None, max_queue_depth: int) -> list[str]:
    """Return advice for a front, whose callers each hold a connection.

    `limit` is the number that `ulimit -n` shows; None is no limit.
    """
    need = 2 * max_queue_depth + _OTHER_FILES
    if limit is None or limit >= need:
        return []
    return [
        f"ulimit -n is {limit}: a front whose queues hold {max_queue_depth} requests may need "
        f"{need} connections; raise it (`ulimit -n {need}`, LimitNOFILE=, --ulimit nofile=) or "
        "lower --max-queue-depth"
    ]


def on_threads(workers: int, threads: int, num_cores: int) -> list[str]:
    """Return advice for the workers of one machine."""
    if workers * threads <= num_cores:
        return []
    return [
        f"{workers} workers of {threads} threads are more than the {num_cores} cores here: threads "
        "that wait for each other make steps many times slower; lower --threads or --workers, or "
        "leave them to `auto`"
    ]


def on_open_door(host: str, port: int, *, requires_key: bool) -> list[str]:
    """Return advice for a front that listens at `host`.

    There is none where callers need a key, or where only this machine reaches the front.
    """
    if requires_key or is_loopback(host):
        return []
    return [
        f"anybody on the network who reaches {host} port {port} may call: require keys "
        "(--api-keys), or listen on this machine alone (--host 127.0.0.1)"
    ]


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a server that listens at `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def on_redis(info: Mapping[str, Any]) -> list[str]:
    """Return advice on a Redis server, from its answer to INFO."""
    lines = []
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        lines.append(
            f"Redis has maxmemory-policy {policy}: it may drop queued requests silently; set it to "
            "noeviction"
        )
    if info.get("aof_enabled", 1) == 0:
        lines.append(
            "Redis has appendonly no: what is queued when it restarts is lost; set it to yes"
        )
    return lines


async def redis_advice(broker: Broker) -> list[str]:
    """Return advice on the Redis servers, each line once.

    Stop at a server that does not answer in time, or does not allow INFO.
    """
    lines: list[str] = []
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            for client in await broker.nodes():
                for line in on_redis(await client.info()):
                    if line not in lines:
                        lines.append(line)
    except (TimeoutError, ResponseError, *UNAVAILABLE) as error:
        logger.info("redis setup not known", extra=fields(error=repr(error)))
    return lines


def open_files_limit() -> int | None:
    """Return the soft limit of open files of this process.

    None means that there is no limit, or that it is not known.
    """
    try:
        import resource
    except ImportError:
        # There is no such module on Windows.
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
