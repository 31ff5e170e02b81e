"""How much faster packed and int8 linear layers are than `F.linear`, with the weights streamed from
memory.

python -m scripts.bench.linear --threads 1

Every call takes other weights than the one before, 128 MiB of fp32 in all, and the kernels take
turns: the ratios of one row were measured side by side. A figure is the quarter quantile of its
calls, which other work disturbs least.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.device import use_threads
from worker.models.linear import Int8Linear, PackedLinear, pack_linears

SHAPES = ((512, 2048), (512, 512), (512, 3072), (1536, 512), (512, 8192), (128, 512), (256, 128))
"""(in, out)."""
ROWS = (1, 4, 8, 16, 32, 1400)
_ROTATED_BYTES = 128 << 20
_MOST_LAYERS = 128
_ROUNDS = 25

Layer = Callable[[Tensor], Tensor]


def call_seconds(
    shape: tuple[int, int], rows: int, kernels: dict[str, list[Layer]], rounds: int
) -> dict[str, float]:
    """Quarter quantile of a call's seconds, by kernel."""
    x = torch.randn(rows, shape[0])
    seconds: dict[str, list[float]] = {name: [] for name in kernels}
    for turn in range(rounds):
        for place, (name, layers) in enumerate(kernels.items()):
            layer = layers[(turn + place * len(layers) // len(kernels)) % len(layers)]
            start = time.perf_counter()
            layer(x)
            seconds[name].append(time.perf_counter() - start)
    return {name: sorted(taken)[len(taken) // 4] for name, taken in seconds.items()}


def kernels_of(shape: tuple[int, int]) -> dict[str, list[Layer]]:
    count = max(2, min(_MOST_LAYERS, _ROTATED_BYTES // (4 * shape[0] * shape[1])))
    weights = [torch.randn(shape[1], shape[0]) * shape[0] ** -0.5 for _ in range(count)]

    def plain(weight: Tensor) -> Layer:
        return lambda x: F.linear(x, weight)

    return {
        "F.linear": [plain(weight) for weight in weights],
        "packed": [PackedLinear(weight, None) for weight in weights],
        "int8": [Int8Linear(weight, None) for weight in weights],
    }


def chosen(shape: tuple[int, int]) -> str:
    """What `pack_linears` makes of such a layer."""
    model = nn.Sequential(nn.Linear(*shape, bias=False))
    return "packed" if pack_linears(model) else "F.linear"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--rounds", type=int, default=_ROUNDS, help="calls of each kernel in a row of the table"
    )
    args = parser.parse_args()
    use_threads(args.threads)
    print(f"{args.threads} thread(s); F.linear in GFLOP/s, the others as multiples of it")
    print(
        "| in x out | chosen for fp32 | rows | F.linear | packed | int8 "
        "|\n|---|---|---|---|---|---|"
    )
    for shape in SHAPES:
        kernels = kernels_of(shape)
        for rows in ROWS:
            rounds = args.rounds if rows < 100 else max(5, args.rounds // 5)
            taken = call_seconds(shape, rows, kernels, rounds)
            base = taken["F.linear"]
            gflops = 2e-9 * rows * shape[0] * shape[1] / base
            gains = f"{base / taken['packed']:.2f} | {base / taken['int8']:.2f}"
            print(
                f"| {shape[0]} x {shape[1]} | {chosen(shape)} | {rows} | {gflops:.1f} | {gains} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
