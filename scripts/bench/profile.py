"""Profile decode steps of a full batch with torch's profiler.

python -m scripts.bench.profile --threads 1
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from scripts.bench.measure import header
from scripts.bench.model import SIZES, hrm_text
from scripts.bench.options import options
from scripts.bench.ours import Ours
from scripts.bench.prompts import draw_prompts
from scripts.bench.rig import QUICK, Load


def main(argv: Sequence[str] | None = None) -> None:
    """Print a header, then the operators of the steps, the most expensive first."""
    args = options(__doc__).parse_args(argv)
    print(header(size=args.size, threads=args.threads, quantize=args.quantize))
    load = QUICK if args.quick else Load()
    prompts = draw_prompts(load.concurrent, *load.prompt_tokens, SIZES[args.size].vocab)
    with tempfile.TemporaryDirectory() as scratch:
        path = hrm_text(args.cache or Path(scratch), args.size)
        ours = Ours(path, threads=args.threads, max_batch=load.concurrent, quantize=args.quantize)
    ours.decode_steps(prompts, [], load.steps)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        seconds = ours.decode_steps(prompts, [], load.steps)
    step_ms = 1000 * seconds / load.steps
    print(f"{step_ms:.1f} ms a step under the profiler; the table includes prefill")
    table = profiler.key_averages().table(
        sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=48
    )
    print(table)


if __name__ == "__main__":
    main()
