"""How many workers, of how many threads each, suit a machine and its models. One rule, without torch or system calls.

- On GPUs: one worker a GPU. Its one thread only launches kernels.
- On a CPU: one single-threaded worker a core, as many as memory holds. Threads that share a step wait for each other,
  and for whatever else the core is given to - the front, Redis, the worker's own event loop; workers wait for nobody
  (docs/benchmarks.md has both shapes measured, for weights that are streamed from memory, too).
- Cores that are left when memory holds no more workers, or when fewer are asked for, become threads, unless the weights
  fit a core's share of the last-level cache: a step is made of operations of microseconds then, which a second thread's
  waking and waiting would only prolong.

No core is kept for the front and Redis: beside a model they need a few per cent of one.
"""

from dataclasses import dataclass
from pathlib import Path

from shared.settings import ModelEntry, Settings, model_entries
from worker.machine import Machine
from worker.model_files import weight_bytes

DEFAULT_KV_BYTES = 512 * 2**20
_PROCESS_BYTES = 512 * 2**20  # an interpreter with torch and transformers, and a step's temporaries


@dataclass(frozen=True)
class Shape:
    workers: int
    threads: int

    def __str__(self) -> str:
        return f"{_counted(self.workers, 'worker')} of {_counted(self.threads, 'thread')}"


def plan_workers(
    machine: Machine, weight_bytes: int, kv_bytes: int, workers: int | None = None, threads: int | None = None
) -> Shape:
    """The shape for weights and keys and values of these sizes (bytes, of one worker); given numbers are kept.

    Unless `workers` is given, the workers fit into free memory together.
    """
    if machine.num_gpus:
        return Shape(workers or machine.num_gpus, threads or 1)
    if workers is None:
        each = 2 * weight_bytes + kv_bytes + _PROCESS_BYTES  # twice, because loading holds what it reads and the net
        workers = max(1, min(machine.num_cores // (threads or 1), machine.free_memory_bytes // each))
    if threads is None:
        fits_cache = weight_bytes * machine.num_cores <= machine.cache_bytes
        threads = 1 if fits_cache else max(1, machine.num_cores // workers)
    return Shape(workers, threads)


def shape_of(settings: Settings, machine: Machine) -> Shape:
    """What `workers` and `threads` come to for the models of the settings."""
    entries = [entry for entry in model_entries(settings) if entry.runner != "echo"]
    kv_bytes = DEFAULT_KV_BYTES if settings.kv_memory_mib == "auto" else settings.kv_memory_mib * 2**20
    sizes = [weight_bytes(Path(entry.path), _kind_of_weights(entry)) for entry in entries]
    return plan_workers(
        machine, sum(sizes), kv_bytes * len(entries), _number(settings.workers), _number(settings.threads)
    )


def _kind_of_weights(entry: ModelEntry) -> str:
    if entry.quantize == "int8":
        return "int8"
    return "float32" if entry.dtype in (None, "auto") else str(entry.dtype)


def _number(value: int | str) -> int | None:
    return None if isinstance(value, str) else value


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
