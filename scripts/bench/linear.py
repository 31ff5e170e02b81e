"""Compare linear layers of every kind with `F.linear`, with weights that come from memory.

python -m scripts.bench.linear --threads 1

Each call uses other weights than the one before, 128 MiB of fp32 in all, so that caches do not hold
them. The kernels run in turns, so the ratios of a row are measured side by side. Each figure is the
lower quartile of its calls, which other work on the machine disturbs least.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.hardware.device import use_threads
from worker.models.linear import Int8Linear, PackedLinear, PanelLinear, pack_linears

# (in, out) of each layer.
SHAPES = ((512, 2048), (512, 512), (512, 3072), (1536, 512), (512, 8192), (128, 512), (256, 128))
ROWS = (1, 4, 8, 16, 32, 1400)
_ROTATED_BYTES = 128 << 20
_MOST_LAYERS = 128
_ROUNDS = 25
_NAMES: dict[type[nn.Module], str] = {
    nn.Linear: "F.linear",
    PackedLinear: "packed",
    PanelLinear: "panels",
}

Layer = Callable[[Tensor], Tensor]


def call_seconds(
    shape: tuple[int, int], rows: int, kernels: dict[str, list[Layer]], rounds: int
) -> dict[str, float]:
    """Return the lower quartile of the seconds of a call, by kernel.

    `shape` is (in, out). The input of a layer has the shape [rows, in].
    """
    x = torch.randn(rows, shape[0])
    seconds: dict[str, list[float]] = {name: [] for name in kernels}
    for turn in range(rounds):
        for index, (name, layers) in enumerate(kernels.items()):
            # Each kernel uses another layer, as far from those of the other kernels as possible.
            offset = index * len(layers) // len(kernels)
            layer = layers[(turn + offset) % len(layers)]
            start = time.perf_counter()
            layer(x)
            seconds[name].append(time.perf_counter() - start)

    quantiles = {}
    for name, durations in seconds.items():
        durations.sort()
        quantiles[name] = durations[len(durations) // 4]
    return quantiles


def kernels_of(shape: tuple[int, int]) -> dict[str, list[Layer]]:
    """Return layers for each kernel, with the same weights: 128 MiB of fp32, or 128 layers."""
    count = max(2, min(_MOST_LAYERS, _ROTATED_BYTES // (4 * shape[0] * shape[1])))
    weights = [torch.randn(shape[1], shape[0]) * shape[0] ** -0.5 for _ in range(count)]

    def plain(weight: Tensor) -> Layer:
        return lambda x: F.linear(x, weight)

    return {
        "F.linear": [plain(weight) for weight in weights],
        "packed": [PackedLinear(weight, None) for weight in weights],
        "panels": [PanelLinear(weight, None) for weight in weights],
        "int8": [Int8Linear(weight, None) for weight in weights],
    }


def chosen(shape: tuple[int, int]) -> str:
    """Return the kernel that `pack_linears` chooses for a layer of this shape in fp32."""
    model = nn.Sequential(nn.Linear(*shape, bias=False))
    pack_linears(model)
    return _NAMES[type(model[0])]


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
        "| in x out | chosen for fp32 | rows | F.linear | packed | panels | int8 "
        "|\n|---|---|---|---|---|---|---|"
    )
    for shape in SHAPES:
        kernels = kernels_of(shape)
        for rows in ROWS:
            rounds = args.rounds
            if rows >= 100:
                # Calls with so many rows take long.
                rounds = max(5, args.rounds // 5)
            seconds = call_seconds(shape, rows, kernels, rounds)
            base = seconds["F.linear"]
            gflops = 2e-9 * rows * shape[0] * shape[1] / base
            cells = [f"{shape[0]} x {shape[1]}", chosen(shape), str(rows), f"{gflops:.1f}"]
            for name in kernels:
                if name != "F.linear":
                    cells.append(f"{base / seconds[name]:.2f}")
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
