"""Every Redis key and channel name, and the job ids they are built from. Nothing else spells a key.

All keys of a job and of its queue carry one hash tag, the shard, so that a script may touch them together on a
cluster. The shard is the first two hex digits of the job id; the other 32 are random.
"""

import secrets

GROUP = "workers"
WORKERS = "aios:{presence}:workers"
MODELS = "aios:{presence}:models"


def new_job_id(shard: int = 0) -> str:
    """A fresh id: two hex digits of shard, 128 random bits."""
    return f"{shard:02x}{secrets.token_hex(16)}"


def queue(model: str, priority: str, shard: int = 0) -> str:
    """The work stream of one model and priority class."""
    return f"aios:{{{shard:02x}}}:queue:{model}:{priority}"


def job(job_id: str) -> str:
    """The hash with the job's spec, state, epoch and last event index."""
    return f"aios:{{{job_id[:2]}}}:job:{job_id}"


def log(job_id: str) -> str:
    """The stream of the job's events."""
    return f"aios:{{{job_id[:2]}}}:log:{job_id}"


def channel(job_id: str) -> str:
    """The pub/sub channel on which the job's events are published as they are logged."""
    return f"aios:{{{job_id[:2]}}}:events:{job_id}"


def worker(worker_id: str) -> str:
    """The expiring presence record of one worker."""
    return f"aios:{{presence}}:worker:{worker_id}"
