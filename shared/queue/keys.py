"""Every Redis key and channel name, and the ids they are built from.

Nothing else in Python spells a key; the scripts in `lua/` spell those below `prefix`.

All keys of a job and of its queue carry one hash tag, the shard, so that a script may touch them
together on a cluster. The shard is the first two hex digits of a job's or request's id; the other
32 are random.
"""

import hashlib
import secrets

PRESENCE = "presence"
WORKERS = f"aios:{{{PRESENCE}}}:workers"
MODELS = f"aios:{{{PRESENCE}}}:models"
UNLOADS = f"aios:{{{PRESENCE}}}:unloads"
CATALOGUE = f"aios:{{{PRESENCE}}}:catalogue"
CATALOGUE_VERSION = f"aios:{{{PRESENCE}}}:catalogue_version"
PINNED = f"aios:{{{PRESENCE}}}:pinned"
LOADS = f"aios:{{{PRESENCE}}}:loads"
POPULARITY = f"aios:{{{PRESENCE}}}:popularity"
ACCESS = "access"
GRANTS = f"aios:{{{ACCESS}}}:grants"
KEYS_MADE = f"aios:{{{ACCESS}}}:made"
LAYOUT = f"aios:{{{PRESENCE}}}:layout"
"""The number of shards that Redis is divided into."""
VERSION = f"aios:{{{PRESENCE}}}:version"
WIRE_VERSION = 2
"""The version of keys and of their fields. It grows when one is renamed or read otherwise."""
ADMISSION = "admission"
"""The hash tag under which limits are counted where there are several shards."""
RESERVED = f"aios:{{{ADMISSION}}}:reserved"
UNCONFIRMED = f"aios:{{{ADMISSION}}}:unconfirmed"
ARTIFACTS = "artifacts"
"""The hash tag of all that Redis knows of artifacts."""
EXPIRING = f"aios:{{{ARTIFACTS}}}:expiring"
LOOSE = f"aios:{{{ARTIFACTS}}}:loose"
USED = f"aios:{{{ARTIFACTS}}}:used"
_ARTIFACT_PREFIX = "file-"
BATCHES = "batches"
"""The hash tag of all that Redis knows of batches."""
ACTIVE_BATCHES = f"aios:{{{BATCHES}}}:active"
UNATTENDED_BATCHES = f"aios:{{{BATCHES}}}:unattended"
_BATCH_PREFIX = "batch_"
EVALUATIONS = "evaluations"
"""The hash tag of all that Redis knows of evaluations, whose keys are those of batches."""
ACTIVE_EVALUATIONS = f"aios:{{{EVALUATIONS}}}:active"
EVALUATION_RUNS = f"aios:{{{EVALUATIONS}}}:owned:operator"
LATEST_EVALUATION = f"aios:{{{EVALUATIONS}}}:latest"
"""The id of the evaluation that ended last with a report."""
_EVALUATION_PREFIX = "eval_"
NO_BATCH_ID = _BATCH_PREFIX + "0" * 32
"""An id that no batch has, for examples."""
NO_ID = "0" * 34
"""An id that no request has."""
WEBHOOKS = "webhooks"
"""The hash tag of all that Redis knows of webhooks."""
PENDING_DELIVERIES = f"aios:{{{WEBHOOKS}}}:pending"
DUE_DELIVERIES = f"aios:{{{WEBHOOKS}}}:due"
_WEBHOOK_PREFIX = "we_"


def new_id(shard: str) -> str:
    """Return a fresh id of a job or request: two hex digits of shard, 128 random bits."""
    return f"{shard}{secrets.token_hex(16)}"


def is_id(text: str) -> bool:
    """Return whether `text` could be an id; only such text may become part of a key."""
    return len(text) == 34 and not text.strip("0123456789abcdef")


def shards(count: int) -> tuple[str, ...]:
    """Return the names of `count` shards, at most 256."""
    return tuple(f"{number:02x}" for number in range(count))


def shard_of(job_id: str) -> str:
    """Return the shard of a job or request."""
    return job_id[:2]


def shard_for(text: str, count: int) -> str:
    """Return the one of `count` shards that has the keys of `text`, always the same one."""
    digest = hashlib.sha256(text.encode()).digest()
    number = int.from_bytes(digest[:4]) % count
    return f"{number:02x}"


def prefix(shard: str) -> str:
    """Return the prefix of every key of a shard."""
    return f"aios:{{{shard}}}:"


def pattern(kind: str) -> str:
    """Return the pattern by which SCAN finds all keys of a kind, on every shard."""
    return f"aios:{{[0-9a-f][0-9a-f]}}:{kind}:*"


def parts(key: str, kind: str) -> tuple[str, str]:
    """Return the shard of a key that `pattern(kind)` found, and its name behind the kind."""
    shard = key[len("aios:{") :][:2]
    return shard, key[len(prefix(shard)) + len(kind) + 1 :]


def job(job_id: str) -> str:
    """Key of the hash with the job's spec, state, epoch and last event index."""
    return f"{prefix(shard_of(job_id))}job:{job_id}"


def log(job_id: str) -> str:
    """Key of the stream of the job's events."""
    return f"{prefix(shard_of(job_id))}log:{job_id}"


def mail(reader: str) -> str:
    """Name of the channel on which a reader hears of events as they are logged."""
    return f"aios:mail:{reader}"


def request(request_id: str) -> str:
    """Key of the hash with a request's jobs, tenant, record and followers."""
    return f"{prefix(shard_of(request_id))}request:{request_id}"


def follower_field(name: str) -> str:
    """Field of a request's hash that notes one of its followers."""
    return f"follower:{name}"


def idempotency(shard: str, tenant: str, name: str) -> str:
    """Key of the hash with the request of an idempotency key, and the digest of its body."""
    return f"{prefix(shard)}key:{tenant}:{name}"


def repeat(shard: str, tenant: str, digest: str) -> str:
    """Key of the id of the tenant's last request whose contents have this digest."""
    return f"{prefix(shard)}repeat:{tenant}:{digest}"


def assigned(request_id: str) -> str:
    """Key of the hash with the experiment of a request, its arm, and its tenant."""
    return f"{prefix(shard_of(request_id))}assigned:{request_id}"


def outcomes(shard: str, experiment: str) -> str:
    """Key of the stream of the jobs of an experiment that have ended."""
    return f"{prefix(shard)}outcomes:{experiment}"


def feedback(shard: str, experiment: str) -> str:
    """Key of the stream of what callers say of an experiment's requests."""
    return f"{prefix(shard)}feedback:{experiment}"


def usage(shard: str, day: int, tenant: str, row: str) -> str:
    """Key of the hash with what jobs of a tenant have used that ended on a day since 1970.

    The `row` is `KEY:MODEL`, for an API key's id and a model.
    """
    return f"{prefix(shard)}usage:{day}:{tenant}:{row}"


def usage_rows(shard: str, day: int, tenant: str) -> str:
    """Key of the set of rows of a tenant with usage on a day since 1970."""
    return f"{prefix(shard)}usage_rows:{day}:{tenant}"


def usage_tenants(shard: str, day: int) -> str:
    """Key of the set of tenants with usage on a day since 1970."""
    return f"{prefix(shard)}usage_tenants:{day}"


def budget(shard: str, api_key: str, start_ms: int) -> str:
    """Key of the hash with the tokens of an API key in a period: those used, those reserved.

    The shard is `Broker.admission`.
    """
    return f"{prefix(shard)}budget:{api_key}:{start_ms}"


def budgeted(shard: str) -> str:
    """Key of the hash of open jobs that count against a budget. The shard is as for `budget`."""
    return f"{prefix(shard)}budgeted"


def bell(shard: str, model: str) -> str:
    """Key of the list that is rung when there is something to take."""
    return f"{prefix(shard)}bell:{model}"


def urgent(shard: str, model: str) -> str:
    """Name of the channel that tells full workers of jobs of the best class that were queued."""
    return f"{prefix(shard)}urgent:{model}"


def depth(shard: str, model: str) -> str:
    """Key of the hash with the numbers of waiting jobs, their cost and their bytes.

    They are those of a shard, or of all shards under ADMISSION.
    """
    return f"{prefix(shard)}depth:{model}"


def leases(shard: str, model: str) -> str:
    """Key of the sorted set of jobs in workers' hands, by when their leases end."""
    return f"{prefix(shard)}leases:{model}"


def open_jobs(shard: str, tenant: str) -> str:
    """Key of the sorted set of a tenant's jobs that have not ended.

    They are those of a shard, or of all shards under ADMISSION.
    """
    return f"{prefix(shard)}open:{tenant}"


def unsettled(shard: str) -> str:
    """Key of the stream of jobs that wait no more, or have ended, and are not settled yet."""
    return f"{prefix(shard)}unsettled"


def served(shard: str, model_and_class: str) -> str:
    """Key of the hash with the virtual times of the tenants of a `MODEL:CLASS`."""
    return f"{prefix(shard)}served:{model_and_class}"


def dead(shard: str) -> str:
    """Key of the stream of jobs that were convicted."""
    return f"{prefix(shard)}dead"


def control(shard: str, worker_id: str) -> str:
    """Name of the channel that tells a worker which jobs are no longer its own."""
    return f"{prefix(shard)}worker:{worker_id}"


def worker(worker_id: str) -> str:
    """Key of the presence record of one worker, which expires."""
    return f"aios:{{{PRESENCE}}}:worker:{worker_id}"


def last_served(model_id: str) -> str:
    """Key of a string whose time to live tells when a ready worker last served the model."""
    return f"aios:{{{PRESENCE}}}:last-served:{model_id}"


def grant(digest: str) -> str:
    """Key of the grant of an API key with this digest, which expires with that API key."""
    return f"aios:{{{ACCESS}}}:grant:{digest}"


def new_artifact_id() -> str:
    """Return a fresh id of an artifact: a prefix, 128 random bits."""
    return f"{_ARTIFACT_PREFIX}{secrets.token_hex(16)}"


def is_artifact_id(text: str) -> bool:
    """Return whether `text` could be an artifact's id; only such text may name a key or a file."""
    digits = text.removeprefix(_ARTIFACT_PREFIX)
    return text != digits and len(digits) == 32 and not digits.strip("0123456789abcdef")


def artifact(artifact_id: str) -> str:
    """Key of the hash with the record of an artifact."""
    return f"{prefix(ARTIFACTS)}artifact:{artifact_id}"


def artifact_bytes(artifact_id: str) -> str:
    """Key of the bytes of an artifact that is small enough to lie in Redis."""
    return f"{prefix(ARTIFACTS)}bytes:{artifact_id}"


def artifacts_of(tenant: str) -> str:
    """Key of the sorted set of a tenant's artifacts, by when they came."""
    return f"{prefix(ARTIFACTS)}owned:{tenant}"


def new_batch_id() -> str:
    """Return a fresh id of a batch: a prefix, 128 random bits."""
    return f"{_BATCH_PREFIX}{secrets.token_hex(16)}"


def batch_id_for(tenant: str, key: str) -> str:
    """Return the id of the batch of a tenant that has this idempotency key."""
    digest = hashlib.sha256(f"{tenant}/{key}".encode()).hexdigest()
    return f"{_BATCH_PREFIX}{digest[:32]}"


def is_batch_id(text: str) -> bool:
    """Return whether `text` could be a batch's id; only such text may name a key."""
    digits = text.removeprefix(_BATCH_PREFIX)
    return text != digits and len(digits) == 32 and not digits.strip("0123456789abcdef")


def batch(batch_id: str) -> str:
    """Key of the hash with the record of a batch."""
    return f"{prefix(BATCHES)}batch:{batch_id}"


def batch_results(batch_id: str) -> str:
    """Key of the hash with the answers of lines that are in no part yet, by their numbers."""
    return f"{prefix(BATCHES)}results:{batch_id}"


def batch_duplicates(batch_id: str) -> str:
    """Key of the set of lines whose `custom_id` an earlier line has."""
    return f"{prefix(BATCHES)}duplicates:{batch_id}"


def batches_of(tenant: str) -> str:
    """Key of the sorted set of a tenant's batches, by when they came."""
    return f"{prefix(BATCHES)}owned:{tenant}"


def new_evaluation_id() -> str:
    """Return a fresh id of an evaluation: a prefix, 128 random bits."""
    return f"{_EVALUATION_PREFIX}{secrets.token_hex(16)}"


def evaluation_id_for(tenant: str, key: str) -> str:
    """Return the id of the evaluation that a tenant has asked for with this idempotency key."""
    digest = hashlib.sha256(f"{tenant}/{key}".encode()).hexdigest()
    return f"{_EVALUATION_PREFIX}{digest[:32]}"


def is_evaluation_id(text: str) -> bool:
    """Return whether `text` could be an evaluation's id; only such text may name a key."""
    digits = text.removeprefix(_EVALUATION_PREFIX)
    return text != digits and len(digits) == 32 and not digits.strip("0123456789abcdef")


def evaluation(run_id: str) -> str:
    """Key of the hash with the record of an evaluation."""
    return f"{prefix(EVALUATIONS)}batch:{run_id}"


def evaluation_results(run_id: str) -> str:
    """Key of the hash with the results of its requests, by their numbers."""
    return f"{prefix(EVALUATIONS)}results:{run_id}"


def new_webhook_id() -> str:
    """Return a fresh id of a webhook endpoint: a prefix, 128 random bits."""
    return f"{_WEBHOOK_PREFIX}{secrets.token_hex(16)}"


def is_webhook_id(text: str) -> bool:
    """Return whether `text` could be a webhook endpoint's id; only such text may name a key."""
    digits = text.removeprefix(_WEBHOOK_PREFIX)
    return text != digits and len(digits) == 32 and not digits.strip("0123456789abcdef")


def webhook(endpoint_id: str) -> str:
    """Key of the hash with the record of a webhook endpoint."""
    return f"{prefix(WEBHOOKS)}endpoint:{endpoint_id}"


def webhooks_of(tenant: str) -> str:
    """Key of the sorted set of a tenant's webhook endpoints, by when they came."""
    return f"{prefix(WEBHOOKS)}owned:{tenant}"


def delivery_attempts(endpoint_id: str) -> str:
    """Key of the stream of attempts to deliver events to an endpoint."""
    return f"{prefix(WEBHOOKS)}attempts:{endpoint_id}"


def outbox(tag: str) -> str:
    """Key of the stream of events that webhooks are not told of yet.

    The tag is a shard, BATCHES or WEBHOOKS.
    """
    return f"{prefix(tag)}outbox"
