"""Compare decoding steps of an HRM-Text with the least that this machine needs for them.

python -m scripts.bench.floor --threads 2 --dtypes float32,bfloat16,int8 --cache FOLDER

A step multiplies all weights with the batch's rows, and reads all its keys and values. The floor is
the time of the products alone, each measured by itself, as they follow one another in a step, and
the bytes of keys and values at the speed at which this machine reads memory. The table has the step, both
parts of the floor, and their ratio; medians of the rounds, each the best of some repetitions.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter as now

import torch
from torch import Tensor, nn

from scripts.bench.measure import header
from scripts.bench.model import SIZES, hrm_text
from scripts.bench.options import options
from scripts.bench.ours import Ours
from scripts.bench.prompts import draw_prompts
from scripts.bench.rig import QUICK, Load
from worker.models.hrm_text import HrmTextModel, all_passes
from worker.runners.hrm_text import HrmTextNet
from worker.runners.paged import PagedRunner

_REPEATS = 5
_READ_BYTES = 512 * 2**20
"""More than any cache holds."""


def main(argv: Sequence[str] | None = None) -> None:
    """Print a header, and a table with a row for each dtype."""
    parser = options(__doc__)
    parser.add_argument("--dtypes", default="float32,bfloat16", help="of weights")
    args = parser.parse_args(argv)
    load = QUICK if args.quick else Load()
    print(header(size=args.size, threads=args.threads, rounds=args.rounds))
    print(
        f"| weights | step of {load.concurrent}, ms | products, ms | keys and values, MB "
        "| at GB/s | floor, ms | step / floor |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        path = hrm_text(args.cache or Path(scratch), args.size)
        for dtype in args.dtypes.split(","):
            print(_row(path, dtype, load, args), flush=True)


def _row(path: Path, dtype: str, load: Load, args: argparse.Namespace) -> str:
    """Return the row of a dtype."""
    engine = Ours(
        path,
        threads=args.threads,
        max_batch=load.concurrent,
        quantize="int8" if dtype == "int8" else "none",
        dtype="float32" if dtype == "int8" else dtype,
    )
    runner = engine.runner
    assert isinstance(runner, PagedRunner)
    net = runner.net
    assert isinstance(net, HrmTextNet)
    prompts = draw_prompts(load.concurrent, *load.prompt_tokens, SIZES[args.size].vocab)
    num_tokens = sum(len(prompt) + load.steps // 2 for prompt in prompts)
    num_bytes = num_tokens * net.kv_shape.bytes_per_token(net.dtype)

    steps = []
    products = []
    speeds = []
    for _ in range(args.rounds):
        steps.append(_best(lambda: engine.decode_steps(prompts, [], load.steps)) / load.steps)
        products.append(_best(lambda: _products(net.model, load.concurrent, net.dtype)))
        speeds.append(_READ_BYTES / _best(_reading()))
    step_ms = 1000 * statistics.median(steps)
    products_ms = 1000 * statistics.median(products)
    bytes_per_s = statistics.median(speeds)
    floor_ms = products_ms + 1000 * num_bytes / bytes_per_s
    cells = [
        dtype,
        f"{step_ms:.1f}",
        f"{products_ms:.1f}",
        f"{num_bytes / 1e6:.0f}",
        f"{bytes_per_s / 1e9:.0f}",
        f"{floor_ms:.1f}",
        f"{step_ms / floor_ms:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _best(measure: Callable[[], float]) -> float:
    """Return the least seconds of some repetitions."""
    return min(measure() for _ in range(_REPEATS))


@torch.inference_mode()
def _products(model: HrmTextModel, rows: int, dtype: torch.dtype) -> float:
    """Return the seconds of all products of a step, in their order."""
    shape = model.shape
    # The linear layers of a block, and the width of what each multiplies.
    widths = {
        "attn.gqkv_proj": shape.hidden_size,
        "attn.o_proj": shape.num_heads * shape.head_dim,
        "mlp.gate_up_proj": shape.hidden_size,
        "mlp.down_proj": shape.intermediate_size,
    }
    inputs = {width: torch.randn(rows, width, dtype=dtype) for width in widths.values()}
    products: list[tuple[nn.Module, Tensor]] = []
    for current in all_passes(shape):
        stack = model.model.H_module if current.is_high else model.model.L_module
        for number in range(shape.num_layers):
            for name, width in widths.items():
                layer = stack.get_submodule(f"layers.{number}.{name}")
                products.append((layer, inputs[width]))
    products.append((model.lm_head, inputs[shape.hidden_size]))

    begun_s = now()
    for layer, x in products:
        layer(x)
    return now() - begun_s


def _reading() -> Callable[[], float]:
    """Return a function that reads memory once, and returns the seconds of that."""
    numbers = torch.ones(_READ_BYTES // 4)

    def read() -> float:
        begun_s = now()
        numbers.sum()
        return now() - begun_s

    return read


if __name__ == "__main__":
    main()
