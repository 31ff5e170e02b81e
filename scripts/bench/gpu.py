"""Measure HRM-Text XL on a GPU: decode against memory bandwidth, prefill against matrix products.

`python -m scripts.bench.gpu` needs no files and no network, as the weights are random and made on
the device. It prints the rates of the device (copies, bf16 matrix products), and each measurement
beside its limit. If one part fails, its error is printed and the others still run. `--small` tries
the script itself, on any device.
"""

import argparse
import math
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from scripts.bench.gpu_agreement import print_agreement
from shared.messages import Sampling
from shared.tasks.runner_options import HrmTextOptions
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Encoded, Slice, TokenSequence
from worker.models.hrm_text import PLAIN_HALVES, HrmTextModel, HrmTextShape
from worker.runners import hrm_text
from worker.runners.paged import PagedRunner
from worker.text.encoding import TextTask

XL = HrmTextShape(
    vocab_size=65536,
    hidden_size=1536,
    intermediate_size=4096,
    num_heads=12,
    head_dim=128,
    num_layers=16,
    h_cycles=2,
    l_cycles=3,
    embedding_scale=39.19,
    max_positions=4096,
)
SMALL = HrmTextShape(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=256,
    num_heads=2,
    head_dim=64,
    num_layers=2,
    h_cycles=2,
    l_cycles=3,
    embedding_scale=11.3,
    max_positions=1024,
)


@dataclass(frozen=True)
class BenchPlan:
    """The sizes of all measurements.

    Each of `batches` is a number of rows that decode behind `context` tokens. `prompts` is the
    number of prompts of `context` tokens that are prefilled together.
    """

    shape: HrmTextShape
    context: int
    batches: tuple[int, ...]
    prompts: int
    repeats: int
    copied_bytes: int
    matrix: int


@dataclass(frozen=True)
class Device:
    """A device and its measured rates.

    `bytes_per_s` is the bytes that copies read and write. `flops_per_s` is the floating point
    operations of bf16 matrix products.
    """

    torch_device: torch.device
    bytes_per_s: float
    flops_per_s: float


FULL_PLAN = BenchPlan(
    shape=XL,
    context=512,
    batches=(1, 16, 64),
    prompts=8,
    repeats=20,
    copied_bytes=2**31,
    matrix=8192,
)
SMALL_PLAN = BenchPlan(
    shape=SMALL,
    context=64,
    batches=(1, 2),
    prompts=2,
    repeats=2,
    copied_bytes=2**20,
    matrix=256,
)


class Ids:
    """The tokenizer of a network that has none, as the benchmark makes its own token ids."""

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
    plan = SMALL_PLAN if small else FULL_PLAN
    torch_device = torch.device("cuda")
    if small and not torch.cuda.is_available():
        torch_device = torch.device("cpu")
    torch.manual_seed(0)
    device = print_device(torch_device, plan)
    model = random_model(plan.shape, torch_device)

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
        "agreement with transformers": lambda: agreement(torch_device, small=small),
    }
    status = 0
    for name, part in parts.items():
        if not _ran(name, part):
            status = 1
    return status


def _ran(name: str, part: Callable[[], None]) -> bool:
    """Run a part of the benchmark and print its traceback if it fails; return whether it ran."""
    started = time.perf_counter()
    print(f"\n# {name}", flush=True)
    try:
        part()
    except Exception:
        # A GPU is often lent for a few minutes only: a failure must not cost the other parts.
        traceback.print_exc(file=sys.stdout)
        return False
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"  ({time.perf_counter() - started:.0f} s)", flush=True)
    return True


def print_device(torch_device: torch.device, plan: BenchPlan) -> Device:
    """Measure the rates of the device, print them and return them."""
    name = str(torch_device)
    if torch_device.type == "cuda":
        name = torch.cuda.get_device_name(torch_device)

    source = torch.empty(plan.copied_bytes, dtype=torch.uint8, device=torch_device)
    target = torch.empty_like(source)
    copy_s = seconds(lambda: target.copy_(source), plan.repeats)
    half = torch.randn(plan.matrix, plan.matrix, dtype=torch.bfloat16, device=torch_device)
    product_s = seconds(lambda: half @ half, plan.repeats)
    device = Device(
        torch_device,
        bytes_per_s=2 * plan.copied_bytes / copy_s,  # each byte is read and written
        flops_per_s=2 * plan.matrix**3 / product_s,
    )
    print(f"# device: {name}, torch {torch.__version__}")
    print(
        f"  copies {device.bytes_per_s / 1e12:.2f} TB/s, bf16 products "
        f"{device.flops_per_s / 1e12:.0f} TFLOP/s"
    )
    return device


def random_model(shape: HrmTextShape, torch_device: torch.device) -> HrmTextModel:
    """Return a network of random bf16 weights, which are made on the device."""
    with torch.device(torch_device):
        model = HrmTextModel(shape)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=1.0 / shape.embedding_scale)
    # The tables of positions were made on the CPU.
    return model.to(torch_device, torch.bfloat16).requires_grad_(False).eval()


def runner_for(
    model: HrmTextModel,
    device: Device,
    plan: BenchPlan,
    batch: int,
    *,
    compiled: bool,
    graphs: bool,
) -> PagedRunner:
    """Return a runner of the model with pages for `batch` rows of the plan's context."""
    is_cuda = device.torch_device.type == "cuda"
    # An earlier runner of the same model may have compiled its halves.
    model.halves = PLAIN_HALVES
    net = hrm_text.HrmTextNet(model, device.torch_device)
    if compiled and is_cuda:
        hrm_text.compile_net(net, "bench")
        print(f"  compiled: {model.halves != PLAIN_HALVES}")

    page_size = 256 if is_cuda else 16
    window = plan.context + page_size
    num_pages = math.ceil(window / page_size) * batch + 1
    options = RunnerOptions(
        "random",
        max_batch=batch,
        page_size=page_size,
        kv_bytes=net.kv_shape.bytes_per_token(net.dtype) * page_size * num_pages,
        step_tokens=4096,
        own=HrmTextOptions(cuda_graphs=graphs),
    )
    return PagedRunner(
        "hrm-text", "random", net=net, language=Ids(), window=window, options=options
    )


def rows(runner: PagedRunner, plan: BenchPlan, count: int, num_computed: int) -> list[Slice]:
    """Return slices of `count` random sequences of `context` tokens, each with its own pages.

    The first `num_computed` tokens of each count as computed. The slice has the others.
    """
    pages_per_row = math.ceil(plan.context / runner.spec.page_size)
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(max_tokens=8, seed=0, temperature=0.0)
    slices = []
    for number in range(count):
        ids = torch.randint(plan.shape.vocab_size, (plan.context,), generator=generator)
        encoded = Encoded(tuple(ids.tolist()), 8)
        row = TokenSequence(str(number), encoded, sampling, num_computed=num_computed)
        row.pages = list(range(number * pages_per_row, (number + 1) * pages_per_row))
        slices.append(Slice(row, plan.context - num_computed))
    return slices


def print_decode(
    model: HrmTextModel, device: Device, plan: BenchPlan, *, compiled: bool, graphs: bool
) -> None:
    """Print the time of a decode step of each batch, and the least time that its bytes take."""
    runner = runner_for(model, device, plan, max(plan.batches), compiled=compiled, graphs=graphs)
    name = getattr(runner.kernel, "__name__", "none")
    print(f"  kernel over pages: {name}, graphs: {runner.has_graphs}")
    for batch in plan.batches:
        slices = rows(runner, plan, batch, num_computed=plan.context - 1)
        step_s = seconds(partial(runner.step, slices), plan.repeats)
        moved = decode_bytes(model, plan, batch)
        floor_s = moved / device.bytes_per_s
        print(
            f"  batch {batch:3}: step {step_s * 1e3:7.2f} ms, floor {floor_s * 1e3:6.2f} ms "
            f"({moved / 1e9:.1f} GB), ratio {step_s / floor_s:5.2f}, {batch / step_s:7.0f} tokens/s",
            flush=True,
        )


def print_prefill(model: HrmTextModel, device: Device, plan: BenchPlan, *, compiled: bool) -> None:
    """Print the rate of the prefill of one prompt and of several, and that of matrix products."""
    runner = runner_for(model, device, plan, plan.prompts, compiled=compiled, graphs=False)
    for count in (1, plan.prompts):
        slices = rows(runner, plan, count, num_computed=0)
        step_s = seconds(partial(runner.step, slices), plan.repeats)
        num_tokens = count * plan.context
        rate = prefill_flops(plan, count) / step_s
        print(
            f"  {count} x {plan.context} tokens: {step_s * 1e3:7.2f} ms, "
            f"{num_tokens / step_s:8.0f} tokens/s, {rate / 1e12:.0f} TFLOP/s, "
            f"{100 * rate / device.flops_per_s:.0f} % of the products'",
            flush=True,
        )


def decode_bytes(model: HrmTextModel, plan: BenchPlan, batch: int) -> float:
    """Return the bytes that a decode step must read.

    They are the weights of each stack for each of its passes, the head once, and the keys and
    values of all rows. All are bf16, so 2 bytes each.
    """
    shape = plan.shape
    low = parameter_bytes(model.model.L_module)
    high = parameter_bytes(model.model.H_module)
    stacks = shape.h_cycles * (shape.l_cycles * low + high)
    head = model.lm_head.weight.numel() * 2
    kv_per_token = 2 * shape.num_kv_slots * shape.num_heads * shape.head_dim * 2
    return stacks + head + batch * plan.context * kv_per_token


def parameter_bytes(module: torch.nn.Module) -> int:
    """Return the bytes of a module's parameters."""
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


def prefill_flops(plan: BenchPlan, prompts: int) -> float:
    """Return the floating point operations of a prefill.

    They are those of the products with the weights and, in attention, of the products of all pairs
    of a prompt's tokens. The head is computed once for each prompt.
    """
    shape = plan.shape
    width = shape.num_heads * shape.head_dim
    layer = 5 * shape.hidden_size * width + 3 * shape.hidden_size * shape.intermediate_size
    per_token = 2 * layer * shape.num_kv_slots + 4 * plan.context * width * shape.num_kv_slots
    return prompts * (plan.context * per_token + 2 * shape.vocab_size * shape.hidden_size)


def agreement(torch_device: torch.device, *, small: bool) -> None:
    """Print the agreement of a network of a few layers with transformers."""
    shape = replace(XL, vocab_size=4096, num_layers=4, max_positions=1024)
    num_tokens = 64
    if small:
        shape = SMALL
        num_tokens = 4
    with tempfile.TemporaryDirectory() as directory:
        print_agreement(Path(directory), shape, torch_device, num_tokens=num_tokens)


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Return the median seconds of `repeats` runs. Two runs before them do not count."""
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        run()
        if torch.cuda.is_available():
            # The call only queues its work on the device.
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return sorted(times[2:])[repeats // 2]


if __name__ == "__main__":
    sys.exit(main())
