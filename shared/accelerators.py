"""The table of accelerators: changes to a loaded network that make it compute faster.

A new one is a row here and the function that it names. `--quantize` chooses among the rows, and a
worker carries them out by `worker/runners/accelerators.py`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Accelerator:
    """One way to compute faster.

    `prepare` names the function (module:attribute) that changes a network in place; a worker
    imports it when it is asked for. It works on `devices`, or on all of them if none is named.

    `needs` says in words what the machine must have, and `is_there` names the function that tells
    whether it has.

    `precision` describes the layers afterwards, for people; "" if they stay as exact as they were.
    `weights` is the type that they have in memory afterwards, if it is another one.

    Where an accelerator `rounds_activations`, a difference in the last bit may change what is
    rounded, so attention runs in tiles (`worker/kv/tiles.py`), as it does where keys and values are
    rounded.
    """

    prepare: str
    precision: str = ""
    weights: str | None = None
    devices: tuple[str, ...] = ()
    needs: str = ""
    is_there: str | None = None
    rounds_activations: bool = False


ACCELERATORS = {
    "none": Accelerator("worker.models.linear:pack_linears"),
    "int8": Accelerator(
        "worker.models.linear:round_linears",
        precision="int8 linear layers",
        weights="int8",
        devices=("cpu",),
        needs="an x86 CPU with AVX2, and PyTorch's fbgemm kernels",
        is_there="worker.models.linear:has_int8_kernels",
        rounds_activations=True,
    ),
}
