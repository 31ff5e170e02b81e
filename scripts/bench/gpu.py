"""What a GPU makes of HRM-Text XL: decode steps against the bytes they must move, prefill against
matrix products.

`python -m scripts.bench.gpu` needs no files and no network: weights are random, made on the device.
It prints the device, what it can do (copies, bf16 matrix products), and each measurement beside the
floor it is compared with. A part that fails is printed and the others still run. `--small` is a
trial of the script itself, on any device.
"""

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from scripts.bench.gpu_agreement import print_agreement
from shared.messages import Sampling
from shared.runner_options import HrmTextOptions
from worker.models.hrm_text import PLAIN_HALVES, HrmTextModel, HrmTextShape
from worker.runners import hrm_text
from worker.runners.base import RunnerOptions, TextTask
from worker.runners.paged import PagedRunner
from worker.sequence import Encoded, Slice, TokenSequence

XL = HrmTextShape(65536, 1536, 4096, 12, 128, 16, 2, 3, 39.19, 4096)
SMALL = HrmTextShape(512, 128, 256, 2, 64, 2, 2, 3, 11.3, 1024)


@dataclass(frozen=True)
class BenchPlan:
    """What is measured: `batches` of rows that decode behind `context` tokens, `prompts` that are
    computed at once."""

    shape: HrmTextShape
    context: int
    batches: tuple[int, ...]
    prompts: int
    repeats: int
    copied_bytes: int
    matrix: int


@dataclass(frozen=True)
class Device:
    """Measured: bytes a second read or written by copies, floating point operations a second of
    bf16 products."""

    place: torch.device
    bytes_per_s: float
    flops_per_s: float


class Ids:
    """A language of bare token ids, for a network without a tokenizer."""

    eos_ids: frozenset[int] = frozenset()

    def encode(self, task: TextTask, window: int) -> Encoded:
        raise NotImplementedError("the benchmark makes its own sequences")

    def decode(self, token_ids: Sequence[int]) -> str:
        return ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--small", action="store_true", help="a tiny network, to see that the script runs"
    )
    small = parser.parse_args(argv).small
    plan = (
        BenchPlan(SMALL, 64, (1, 2), 2, 2, 2**20, 256)
        if small
        else BenchPlan(XL, 512, (1, 16, 64), 8, 20, 2**31, 8192)
    )
    place = torch.device("cuda" if torch.cuda.is_available() or not small else "cpu")
    torch.manual_seed(0)
    device = print_device(place, plan)
    model = random_model(plan.shape, place)
    parts: dict[str, Callable[[], None]] = {
        "decode, compiled, graphs": lambda: print_decode(
            model, device, plan, compiled=True, graphs=True
        ),
        "decode, plain layers, graphs": lambda: print_decode(
            model, device, plan, compiled=False, graphs=True
        ),
        "decode, compiled, no graphs": lambda: print_decode(
            model, device, plan, compiled=True, graphs=False
        ),
        "prefill, compiled": lambda: print_prefill(model, device, plan, compiled=True),
        "prefill, plain layers": lambda: print_prefill(model, device, plan, compiled=False),
        "agreement with transformers": lambda: agreement(place, small=small),
    }
    return int(sum(not _ran(name, part) for name, part in parts.items()) > 0)


def _ran(name: str, part: Callable[[], None]) -> bool:
    started = time.perf_counter()
    print(f"\n# {name}", flush=True)
    try:
        part()
    except (
        Exception
    ):  # the device is lent for minutes: what one part meets must not cost the others
        traceback.print_exc(file=sys.stdout)
        return False
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"  ({time.perf_counter() - started:.0f} s)", flush=True)
    return True


def print_device(place: torch.device, plan: BenchPlan) -> Device:
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else str(place)
    source = torch.empty(plan.copied_bytes, dtype=torch.uint8, device=place)
    target = torch.empty_like(source)
    copy_s = seconds(lambda: target.copy_(source), plan.repeats)
    half = torch.randn(plan.matrix, plan.matrix, dtype=torch.bfloat16, device=place)
    product_s = seconds(lambda: half @ half, plan.repeats)
    device = Device(place, 2 * plan.copied_bytes / copy_s, 2 * plan.matrix**3 / product_s)
    print(f"# device: {name}, torch {torch.__version__}")
    print(
        f"  copies {device.bytes_per_s / 1e12:.2f} TB/s, bf16 products "
        f"{device.flops_per_s / 1e12:.0f} TFLOP/s"
    )
    return device


def random_model(shape: HrmTextShape, place: torch.device) -> HrmTextModel:
    with torch.device(place):
        model = HrmTextModel(shape)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=1.0 / shape.embedding_scale)
    return model.to(torch.bfloat16).requires_grad_(False).eval()


def runner_for(
    model: HrmTextModel,
    device: Device,
    plan: BenchPlan,
    batch: int,
    *,
    compiled: bool,
    graphs: bool,
) -> PagedRunner:
    plain = model.halves = PLAIN_HALVES
    net = hrm_text.HrmTextNet(model, device.place)
    if compiled and device.place.type == "cuda":
        hrm_text.compile_net(net, "bench")
        print(f"  compiled: {model.halves != plain}")
    page_size = 256 if device.place.type == "cuda" else 16
    window = plan.context + page_size
    room = (
        net.kv_shape.bytes_per_token(net.dtype) * page_size * (-(-window // page_size) * batch + 1)
    )
    options = RunnerOptions(
        "random",
        max_batch=batch,
        page_size=page_size,
        kv_bytes=room,
        step_tokens=4096,
        own=HrmTextOptions(cuda_graphs=graphs),
    )
    return PagedRunner(
        "hrm-text", "random", net=net, language=Ids(), window=window, options=options
    )


def rows(runner: PagedRunner, plan: BenchPlan, count: int, num_computed: int) -> list[Slice]:
    """Sequences of `context` tokens with pages of their own, of which all but the last
    `num_computed` are to come."""
    per_row = -(-plan.context // runner.spec.page_size)
    generator = torch.Generator().manual_seed(0)
    slices = []
    for number in range(count):
        ids = tuple(
            torch.randint(plan.shape.vocab_size, (plan.context,), generator=generator).tolist()
        )
        sampling = Sampling(max_tokens=8, seed=0, temperature=0.0)
        row = TokenSequence(str(number), Encoded(ids, 8), sampling, num_computed=num_computed)
        row.pages = list(range(number * per_row, (number + 1) * per_row))
        slices.append(Slice(row, plan.context - num_computed))
    return slices


def print_decode(
    model: HrmTextModel, device: Device, plan: BenchPlan, *, compiled: bool, graphs: bool
) -> None:
    runner = runner_for(model, device, plan, max(plan.batches), compiled=compiled, graphs=graphs)
    name = getattr(runner.kernel, "__name__", "none")
    print(f"  kernel over pages: {name}, graphs: {runner.has_graphs}")
    for batch in plan.batches:
        slices = rows(runner, plan, batch, plan.context - 1)
        step_s = seconds(lambda slices=slices: runner.step(slices), plan.repeats)  # type: ignore[misc]
        moved = decode_bytes(model, plan, batch)
        floor_s = moved / device.bytes_per_s
        print(
            f"  batch {batch:3}: step {step_s * 1e3:7.2f} ms, floor {floor_s * 1e3:6.2f} ms "
            f"({moved / 1e9:.1f} GB), ratio {step_s / floor_s:5.2f}, {batch / step_s:7.0f} tokens/s",
            flush=True,
        )


def print_prefill(model: HrmTextModel, device: Device, plan: BenchPlan, *, compiled: bool) -> None:
    runner = runner_for(model, device, plan, plan.prompts, compiled=compiled, graphs=False)
    for count in (1, plan.prompts):
        slices = rows(runner, plan, count, 0)
        step_s = seconds(lambda slices=slices: runner.step(slices), plan.repeats)  # type: ignore[misc]
        rate = prefill_flops(plan, count) / step_s
        print(
            f"  {count} x {plan.context} tokens: {step_s * 1e3:7.2f} ms, "
            f"{count * plan.context / step_s:8.0f} tokens/s, {rate / 1e12:.0f} TFLOP/s, "
            f"{100 * rate / device.flops_per_s:.0f} % of the products'",
            flush=True,
        )


def decode_bytes(model: HrmTextModel, plan: BenchPlan, batch: int) -> float:
    """What a step must read: each stack once a pass, the head once, keys and values of every
    row."""
    shape, core = plan.shape, model.model
    low, high = (
        sum(p.numel() * p.element_size() for p in part.parameters())
        for part in (core.L_module, core.H_module)
    )
    passes = shape.h_cycles * (shape.l_cycles * low + high)
    kept = 2 * shape.num_kv_slots * shape.num_heads * shape.head_dim * 2
    return passes + model.lm_head.weight.numel() * 2 + batch * plan.context * kept


def prefill_flops(plan: BenchPlan, prompts: int) -> float:
    """Products with the weights and, in attention, of all pairs of a prompt's tokens; the head once
    a prompt."""
    shape = plan.shape
    width = shape.num_heads * shape.head_dim
    layer = 5 * shape.hidden_size * width + 3 * shape.hidden_size * shape.intermediate_size
    per_token = 2 * layer * shape.num_kv_slots + 4 * plan.context * width * shape.num_kv_slots
    return prompts * (plan.context * per_token + 2 * shape.vocab_size * shape.hidden_size)


def agreement(place: torch.device, *, small: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        shape = SMALL if small else replace(XL, vocab_size=4096, num_layers=4, max_positions=1024)
        print_agreement(Path(directory), shape, place, num_tokens=4 if small else 64)


def seconds(run: Callable[[], object], repeats: int) -> float:
    """The median time of a run, after two that do not count."""
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return sorted(times[2:])[repeats // 2]


if __name__ == "__main__":
    sys.exit(main())
