"""The shape of a fleet on one machine: the number of workers, and of the threads of each.

It is one rule, without torch or system calls.

- On GPUs: one worker for each GPU. Its one thread only launches kernels.
- On a CPU: one single-threaded worker for each core, as many as fit into memory. Workers do not
  wait for each other, as the threads of a step do.
- Cores become threads when there are fewer workers than cores, because memory holds no more or
  because fewer are asked for. But workers keep one thread if the weights fit a core's share of the
  last-level cache. A step then consists of operations of microseconds, which waking a second thread
  would only prolong.

For larger weights the rule is only a guess: workers read the weights from memory once each, threads
read them together, and which is faster depends on the machine and on what computes. So a fleet that
generates text has the shapes of `shapes_to_measure` measured when it starts for the first time
(`scripts/cli/shape_choice.py`), and `measurements.py` chooses.

No core is kept for the front and Redis: beside a model they need a few per cent of one.
"""

from dataclasses import dataclass, field
from pathlib import Path

from shared.accelerators import ACCELERATORS
from shared.settings.settings import ModelEntry, Settings, model_entries, names_models
from shared.tasks.runner_table import WITHOUT_FILES
from worker.hardware.machine import Machine
from worker.models.model_files import stored_bytes, weight_bytes

DEFAULT_KV_BYTES = 512 * 2**20
MOST_FOR_SMALL = 2
"""The most workers of a model that fits a core's share of the cache, unless more are asked for.

Each answers thousands of tokens a second, and takes half a gigabyte beside its weights.
"""
MOST_MEASURED = 8
"""The most workers of a shape that is measured: each loads the model."""
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
    if _fit_cache(weight_bytes, machine):
        return 1, "threads: one, for weights that fit a core's share of the cache"
    return max(1, machine.num_cores // workers), "threads: the cores shared out among the workers"


def _fit_cache(weight_bytes: int, machine: Machine) -> bool:
    """Return whether weights fit a core's share of the last-level cache."""
    return weight_bytes * machine.num_cores <= machine.cache_bytes


def shape_of(settings: Settings, machine: Machine) -> Shape:
    """Return the shape that the rule has for the models of the settings."""
    num_bytes, kv_bytes = _bytes_of_worker(settings)
    shape = plan_workers(
        machine,
        num_bytes,
        kv_bytes=kv_bytes,
        workers=_workers_asked(settings, machine),
        threads=_number(settings.threads),
    )
    is_asked_for = settings.workers is not None or machine.num_gpus > 0
    if is_asked_for or shape.workers <= MOST_FOR_SMALL or not _fit_cache(num_bytes, machine):
        return shape
    why = f"workers: {MOST_FOR_SMALL}, for a small model; {shape.why.partition('; ')[2]}"
    return Shape(MOST_FOR_SMALL, shape.threads, why)


def shapes_to_measure(settings: Settings, machine: Machine) -> list[Shape]:
    """Return the shapes among which measuring decides, the one with the fewest workers first.

    They begin with one worker of all cores, and end with as many workers as the rule has. Those
    between have half as many workers as the next one. More than `MOST_MEASURED` are not measured,
    nor more than a full batch has rows.

    There are none where the rule decides alone. A number of workers or threads that is set leaves
    at most a choice that the rule knows. Weights that fit a core's share of the cache are not worth
    the wait: the rule is right there.
    """
    workers = _workers_asked(settings, machine)
    if machine.num_gpus or workers is not None or settings.threads != "auto":
        return []
    num_bytes, kv_bytes = _bytes_of_worker(settings)
    if _fit_cache(num_bytes, machine):
        return []

    most = plan_workers(machine, num_bytes, kv_bytes).workers
    count = min(most, MOST_MEASURED, settings.max_batch_size)
    shapes: list[Shape] = []
    while count:
        shapes.append(Shape(count, machine.num_cores // count))
        count //= 2
    if len(shapes) < 2:
        return []
    return shapes[::-1]


def _bytes_of_worker(settings: Settings) -> tuple[int, int]:
    """Return the bytes of the weights, and of the keys and values, of one worker's models.

    The weights of the models that ship count for nothing. They are small on any machine, and a
    first start should not take longer because of a measurement.
    """
    kv_bytes_of_model = DEFAULT_KV_BYTES
    if settings.kv_memory_mib != "auto":
        kv_bytes_of_model = settings.kv_memory_mib * 2**20
    num_bytes = 0
    kv_bytes = 0
    for entry in model_entries(settings):
        if entry.runner in WITHOUT_FILES:
            continue
        if names_models(settings):
            num_bytes += bytes_of_weights(entry)
        kv_bytes += kv_bytes_of_model
    return num_bytes, kv_bytes


def bytes_of_weights(entry: ModelEntry) -> int:
    """Return the bytes that a model's weights take in memory, or an estimate from above."""
    path = Path(entry.path).expanduser()
    # A trainer's checkpoint has files of other names, and more in them than weights.
    return weight_bytes(path, kind_of_weights(entry)) or stored_bytes(path)


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


def _workers_asked(settings: Settings, machine: Machine) -> int | None:
    """Return the number of workers that is set, None for `auto`."""
    if settings.workers is not None:
        return _number(settings.workers)
    # The other GPUs of a machine may be somebody else's: they are taken when they are asked for.
    return 1 if machine.num_gpus else None


def _number(value: int | str) -> int | None:
    """Return a number that is set, None for `auto`."""
    if isinstance(value, str):
        return None
    return value


def _counted(count: int, noun: str) -> str:
    if count == 1:
        return f"{count} {noun}"
    return f"{count} {noun}s"
