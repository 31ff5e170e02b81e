"""The shape of a fleet on one machine: the number of workers, and of the threads of each.

It is one rule, without torch or system calls.

- On GPUs: one worker for each GPU. Its one thread only launches kernels.
- On a CPU: one single-threaded worker for each core, as many as fit into memory. Threads that share
  a step wait for each other, and for the core's other processes: the front, Redis, the worker's own
  event loop. Workers do not wait for each other. docs/benchmarks.md compares both shapes, for
  weights that are streamed from memory, too.
- Cores become threads when there are fewer workers than cores, because memory holds no more or
  because fewer are asked for. But workers keep one thread if the weights fit a core's share of the
  last-level cache. A step then consists of operations of microseconds, which waking a second thread
  would only prolong.

No core is kept for the front and Redis: beside a model they need a few per cent of one.
"""

from dataclasses import dataclass, field
from pathlib import Path

from shared.accelerators import ACCELERATORS
from shared.settings.settings import ModelEntry, Settings, model_entries
from shared.tasks.runner_table import WITHOUT_FILES
from worker.hardware.machine import Machine
from worker.models.model_files import weight_bytes

DEFAULT_KV_BYTES = 512 * 2**20
_PROCESS_BYTES = 512 * 2**20  # an interpreter with torch and transformers, and a step's temporaries


@dataclass(frozen=True)
class Shape:
    """The number of workers, and of the threads of each. `why` names the rules that decided."""

    workers: int
    threads: int
    why: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{_counted(self.workers, 'worker')} of {_counted(self.threads, 'thread')}"


def plan_workers(
    machine: Machine,
    weight_bytes: int,
    kv_bytes: int,
    workers: int | None = None,
    threads: int | None = None,
) -> Shape:
    """Return the shape for weights, and keys and values, of these sizes (bytes, of one worker).

    Numbers of workers or threads that are given are kept. Unless `workers` is given, all workers
    fit into free memory together.
    """
    workers, why_workers = _workers(machine, weight_bytes, kv_bytes, workers, threads)
    threads, why_threads = _threads(machine, weight_bytes, workers, threads)
    return Shape(workers, threads, f"{why_workers}; {why_threads}")


def _workers(
    machine: Machine, weight_bytes: int, kv_bytes: int, workers: int | None, threads: int | None
) -> tuple[int, str]:
    """Return the number of workers, and the rule that decided."""
    if workers is not None:
        return workers, "workers: as set"
    if machine.num_gpus:
        return machine.num_gpus, "workers: one a GPU"
    if machine.free_memory_bytes == 0:
        return 1, "workers: one, as free memory is not known"

    # Twice the weights, because loading holds both the tensors of the file and the network.
    bytes_of_worker = 2 * weight_bytes + kv_bytes + _PROCESS_BYTES
    by_memory = machine.free_memory_bytes // bytes_of_worker
    by_cores = machine.num_cores // (threads or 1)
    if by_memory < by_cores:
        return max(1, by_memory), "workers: as many as free memory holds"
    if threads in (None, 1):
        return max(1, by_cores), "workers: one a core"
    return max(1, by_cores), "workers: as many as cores for their threads"


def _threads(
    machine: Machine, weight_bytes: int, workers: int, threads: int | None
) -> tuple[int, str]:
    """Return the number of threads of each of `workers`, and the rule that decided."""
    if threads is not None:
        return threads, "threads: as set"
    if machine.num_gpus:
        return 1, "threads: one, which launches kernels"
    if weight_bytes * machine.num_cores <= machine.cache_bytes:
        return 1, "threads: one, for weights that fit a core's share of the cache"
    return max(1, machine.num_cores // workers), "threads: the cores shared out among the workers"


def shape_of(settings: Settings, machine: Machine) -> Shape:
    """Return the shape for the models of the settings, which may ask for `auto`."""
    kv_bytes_of_model = DEFAULT_KV_BYTES
    if settings.kv_memory_mib != "auto":
        kv_bytes_of_model = settings.kv_memory_mib * 2**20
    num_bytes = 0
    kv_bytes = 0
    for entry in model_entries(settings):
        if entry.runner in WITHOUT_FILES:
            continue
        num_bytes += weight_bytes(Path(entry.path), kind_of_weights(entry))
        kv_bytes += kv_bytes_of_model
    return plan_workers(
        machine,
        num_bytes,
        kv_bytes=kv_bytes,
        workers=_number(settings.workers),
        threads=_number(settings.threads),
    )


def kind_of_weights(entry: ModelEntry) -> str:
    """Return the dtype of a model's weights in memory, by its entry alone.

    It is float32 for `auto`, which a GPU may change.
    """
    accelerated = ACCELERATORS[entry.quantize or "none"].weights
    if accelerated is not None:
        return accelerated
    if entry.dtype in (None, "auto"):
        return "float32"
    return str(entry.dtype)


def _number(value: int | str) -> int | None:
    """Return a number that is set, None for `auto`."""
    if isinstance(value, str):
        return None
    return value


def _counted(count: int, noun: str) -> str:
    if count == 1:
        return f"{count} {noun}"
    return f"{count} {noun}s"
