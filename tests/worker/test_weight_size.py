"""D103: what the weights of a model take in memory, and what rounding them saves beside fp16."""

import re
from dataclasses import replace

import pytest
import torch
from redis.asyncio import Redis
from torch import nn

from shared.settings.settings import DEFAULT_MODEL
from shared.telemetry.metrics import WorkerMetrics
from tests.fixtures.polling import until
from tests.fixtures.worker.services import service, serving
from worker.engine.runner import RunnerOptions
from worker.engine.weights import UNKNOWN_SIZE, WeightSize
from worker.models import linear
from worker.models.weight_size import weight_size
from worker.native import operators
from worker.runners.accelerators import prepare
from worker.runners.registry import load_runner

WIDTH = 512


class Net(nn.Module):
    """A network whose last layer shares its weight with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(1024, WIDTH)
        self.inner = nn.Linear(WIDTH, 2 * WIDTH)
        self.narrow = nn.Linear(2 * WIDTH, 8)
        self.head = nn.Linear(WIDTH, 1024, bias=False)
        self.head.weight = self.words.weight


NUM_WEIGHTS = 1024 * WIDTH + (2 * WIDTH * WIDTH + 2 * WIDTH) + (8 * 2 * WIDTH + 8)


@pytest.fixture(params=["our kernels", "torch's"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch's":
        monkeypatch.setattr(operators, "library", lambda: None)
    elif operators.library() is None:
        pytest.skip("there are no kernels here")


@pytest.mark.usefixtures("kernels")
def test_all_weights_count_once_in_whatever_form_they_are() -> None:
    plain = weight_size(Net())
    assert plain == WeightSize(NUM_WEIGHTS, 4 * NUM_WEIGHTS)
    assert plain.saving == -1.0, "fp32 takes twice the memory of fp16"

    for dtype in (torch.float32, torch.bfloat16):
        net = Net().to(dtype)
        prepare(net, RunnerOptions("net"))
        packed = weight_size(net)
        assert packed.num_weights == NUM_WEIGHTS
        # A bias is kept in fp32.
        assert packed.num_bytes == pytest.approx(dtype.itemsize * NUM_WEIGHTS, rel=0.01)

    both = Net()
    assert weight_size(both, both.inner, both) == plain, "networks may share their parts"


@pytest.mark.usefixtures("kernels")
def test_rounded_weights_take_a_byte_and_those_that_are_left_as_many_as_before() -> None:
    net = Net()
    assert prepare(net, RunnerOptions("net", quantize="int8")) == 2
    size = weight_size(net)
    assert size.num_weights == NUM_WEIGHTS
    # The embedding stays, so the head is kept a second time.
    rounded = 2 * WIDTH * WIDTH + 1024 * WIDTH
    left = 4 * (1024 * WIDTH + 8 * 2 * WIDTH)
    assert size.num_bytes == pytest.approx(rounded + left, rel=0.02)
    assert size.saving < 0

    untied = Net()
    untied.head.weight = nn.Parameter(untied.head.weight.clone())
    untied.words = nn.Embedding(8, WIDTH)
    prepare(untied, RunnerOptions("net", quantize="int8"))
    assert weight_size(untied).saving == pytest.approx(0.5, abs=0.05), "half of fp16"


def test_the_bytes_are_those_of_the_tensors_that_are_kept() -> None:
    """Not those of a formula: what a layer holds is added up."""
    weight, bias = torch.randn(1024, WIDTH), torch.randn(1024)
    layers: list[linear.ReplacedLinear] = [linear.PackedLinear(weight, bias)]
    if operators.can_pack(weight):
        layers += [linear.PanelLinear(weight, bias), linear.Int8PanelLinear(weight, bias)]
    for layer in layers:
        kept = 0
        for value in vars(layer).values():
            for tensor in vars(value).values() if hasattr(value, "steps") else [value]:
                if isinstance(tensor, torch.Tensor):
                    kept += tensor.numel() * tensor.element_size()
        assert layer.num_bytes == kept, layer
    # fbgemm's form is opaque. Its file has the same numbers, and some hundred bytes of names.
    packed = linear.Int8Linear(weight, bias)
    unpacked, _ = torch.ops.quantized.linear_unpack(packed._packed)
    scales, points = unpacked.q_per_channel_scales(), unpacked.q_per_channel_zero_points()
    assert packed.num_bytes == unpacked.numel() + 4 * (len(scales) + len(points) + 1024) + 4 * 1024


def test_a_size_that_is_not_known_saves_nothing() -> None:
    assert UNKNOWN_SIZE.saving == 0.0


async def test_a_worker_tells_the_size_of_the_weights_of_its_models(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All matrices of the sample are small, and would stay exact.
    monkeypatch.setattr(linear, "MIN_INT8_WEIGHTS", 0)
    options = RunnerOptions(str(DEFAULT_MODEL), name="m", kv_bytes=16 << 20)
    exact = load_runner("auto", options)
    rounded = load_runner("auto", replace(options, quantize="int8"))
    # Panels are filled up with zeros.
    assert exact.spec.weights.saving == pytest.approx(-1.0, abs=0.05)
    assert rounded.spec.weights.num_weights == exact.spec.weights.num_weights
    assert rounded.spec.weights.num_bytes < 0.6 * exact.spec.weights.num_bytes

    worker = service(redis)
    metrics = WorkerMetrics()
    worker.tell(metrics)
    async with serving(worker, rounded):
        await until(
            lambda: "m" in worker.models and worker.models["m"].host is not None, "it is loaded"
        )
        text = metrics.render().decode()
        [num_bytes] = re.findall(r'^aios_worker_weight_bytes{model="m"} (\S+)', text, re.MULTILINE)
        [saving] = re.findall(
            r'^aios_worker_weight_saving_ratio{model="m"} (\S+)', text, re.MULTILINE
        )
        assert float(num_bytes) == rounded.spec.weights.num_bytes
        assert float(saving) == pytest.approx(rounded.spec.weights.saving)
