"""Linear layers for inference on the CPU.

They are compared with F.linear, with integer arithmetic, and with themselves in other batches.
"""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tests.fixtures.worker.int8 import Int8Layer, int8_layer, weight_peak
from worker.engine.runner import RunnerOptions
from worker.models.errors import ModelFormatError
from worker.models.linear import (
    Int8Linear,
    Int8PanelLinear,
    PackedLinear,
    PanelLinear,
    keeps_rows_apart,
    pack_all_linears,
)
from worker.native import operators
from worker.runners.accelerators import prepare

# No multiple of any vector's width, so that a kernel's remainders are run too.
ODD_IN = 261
ODD_OUT = 523
ROW_COUNTS = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 257)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


def prepared(model: nn.Module, quantize: str = "none") -> int:
    return prepare(model, RunnerOptions("net", quantize=quantize))


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this test see a machine without our own kernels."""
    monkeypatch.setattr(operators, "library", lambda: None)


def odd_weight() -> tuple[Tensor, Tensor]:
    """Return a weight [out, in] and a bias."""
    return torch.randn(ODD_OUT, ODD_IN) * ODD_IN**-0.5, torch.randn(ODD_OUT)


def all_kinds() -> list[nn.Module]:
    """Return a layer of each kind, with the same weights. The last ones need our kernels."""
    weight, bias = odd_weight()
    layers: list[nn.Module] = [PackedLinear(weight, bias), Int8Linear(weight, bias)]
    if operators.can_pack(weight):
        layers.append(PanelLinear(weight, bias))
        layers.append(Int8PanelLinear(weight, bias))
    return layers


@pytest.fixture(params=[Int8Linear, Int8PanelLinear])
def int8(request: pytest.FixtureRequest) -> Int8Layer:
    """Return a kind of int8 layer: fbgemm's, or that of our kernels."""
    kind: Int8Layer = request.param
    if kind is Int8PanelLinear and operators.library() is None:
        pytest.skip("there are no kernels here")
    return kind


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(512, 1024), lambda: nn.Linear(512, 1024, bias=False)]
)
@pytest.mark.parametrize("lead", [(1,), (16,), (2, 5), (0,), (3, 0)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-8)])
def test_packed_equals_the_layer_it_replaces(
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[], nn.Module],
    lead: tuple[int, ...],
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    """A packed layer computes what the layer did that it replaces, for inputs of any shape."""
    without_kernels(monkeypatch)
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor does not multiply bfloat16")
    layer = make().to(dtype)
    model = nn.Sequential(copy.deepcopy(layer))

    assert prepared(model) == 1

    assert isinstance(model[0], PackedLinear)
    x = torch.randn(*lead, 512).to(dtype)
    torch.testing.assert_close(model(x), layer(x), atol=tolerance, rtol=tolerance)


def test_gpt2s_transposed_layer_is_replaced_too() -> None:
    """A Conv1D, whose weight is transposed, is replaced and computes the same."""
    layer = Conv1D(1024, 512)
    nn.init.normal_(layer.bias)
    for quantize, tolerance in (("none", 1e-6), ("int8", 0.05)):
        model = nn.Sequential(copy.deepcopy(layer))
        assert prepared(model, quantize=quantize) == 1
        x = torch.randn(2, 3, 512)
        torch.testing.assert_close(model(x), layer(x), atol=tolerance, rtol=1e-5)


def test_rows_may_lie_anywhere_in_memory() -> None:
    """Inputs that are not contiguous give the same results bit by bit."""
    rows = torch.randn(5, ODD_IN)
    transposed = rows.t().contiguous().t()
    strided = torch.stack((rows, -rows), dim=2)[..., 0]
    assert not transposed.is_contiguous()
    assert not strided.is_contiguous()

    for layer in all_kinds():
        expected = layer(rows)
        assert torch.equal(layer(transposed), expected)
        assert torch.equal(layer(strided), expected)


def test_no_rows_are_no_trouble() -> None:
    """An input without rows gives an output without rows, as for an expert that no token chose."""
    for layer in all_kinds():
        assert layer(torch.empty(0, ODD_IN)).shape == (0, ODD_OUT)
        assert layer(torch.empty(2, 0, ODD_IN)).shape == (2, 0, ODD_OUT)


def test_a_row_does_not_see_the_values_of_others() -> None:
    """Batch mates that are large, small, zero, infinite or NaN change no bit of a row (P3)."""
    rows = torch.randn(6, ODD_IN)
    for layer in all_kinds():
        expected = layer(rows)
        for mate in (1e6, 1e-6, 0.0, float("nan"), float("inf")):
            mixed = rows.clone()
            mixed[1::2] *= mate
            assert torch.equal(layer(mixed)[::2], expected[::2])


def test_an_int8_row_is_the_same_in_a_batch_of_any_size(int8: Int8Layer) -> None:
    """An 8-bit row is the same bit by bit in any batch, with any number of threads.

    Sums of integers are exact, so that the order of summation does not matter.
    """
    layer = int8(*odd_weight())
    rows = torch.randn(max(ROW_COUNTS), ODD_IN)
    expected = layer(rows)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for count in ROW_COUNTS:
            assert torch.equal(layer(rows[:count]), expected[:count])
            assert torch.equal(layer(rows[-count:]), expected[-count:])


def integer_reference(x: Tensor, weight: Tensor, peak: int) -> Tensor:
    """Multiply 8-bit activations and weights up to `peak`, and sum in int64.

    Activations have a scale for each row, weights one for each output.
    """
    x_scale = x.abs().amax(-1, keepdim=True).double() / 127
    weight_scale = weight.abs().amax(-1).double() / peak
    x_integers = (x / x_scale).round().long()
    weight_integers = (weight / weight_scale[:, None]).round().long()
    sums = x_integers @ weight_integers.t()
    return sums * x_scale * weight_scale


def test_int8_sums_are_exact_at_the_extremes(int8: Int8Layer) -> None:
    """Sums are exact where every pair of neighbours is at full scale.

    Sums of two products in 16 bits saturate if weights have 8 bits.
    """
    patterns = torch.tensor([[1, 1, 1, 1], [-1, -1, -1, -1], [1, -1, 1, -1], [1, 1, -1, -1]])
    signs = patterns.repeat(1, 128).float()
    x = signs * 3.0
    weight = torch.cat((signs, torch.randn(60, 512).sign())) * 0.02

    out = int8(weight, None)(x)

    reference = integer_reference(x, weight, weight_peak(int8))
    torch.testing.assert_close(out.double(), reference, atol=0, rtol=1e-6)


def test_int8_is_the_rounding_it_claims_and_near_fp32(int8: Int8Layer) -> None:
    """An 8-bit layer equals the integer reference, and is near the layer in full precision."""
    x = torch.randn(16, 512) * torch.logspace(-6, 6, 16)[:, None]
    weight = torch.randn(256, 512)

    out = int8(weight, None)(x).double()

    exact = F.linear(x, weight).double()
    reference = integer_reference(x, weight, weight_peak(int8))
    scale = exact.pow(2).mean(-1).sqrt()[:, None]
    # At a tie one of the 512 products may be rounded the other way, which is one step.
    assert ((out - reference).abs() / scale).max() < 1e-2
    assert ((out - exact) / scale).pow(2).mean().sqrt() < 0.025


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_zeros_stay_zero_and_what_is_no_number_stays_none(int8: Int8Layer, number: float) -> None:
    """A row of zeros and weights of zeros give zeros plus the bias.

    A row with what is no finite number has no finite result.
    """
    layer = int8(odd_weight()[0], None)
    x = torch.zeros(3, ODD_IN)
    x[1, 5] = number

    out = layer(x)

    assert torch.equal(out[::2], torch.zeros(2, ODD_OUT))
    assert not out[1].isfinite().any()
    of_zeros = int8(torch.zeros(8, 16), torch.ones(8))
    assert torch.equal(of_zeros(torch.randn(2, 16)), torch.ones(2, 8))


class Net(nn.Module):
    """A network with one layer of each kind that the rules tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1024, 512)
        self.wide = nn.Linear(512, 1024)
        self.square = nn.Linear(512, 512)
        self.small = nn.Linear(256, 256)
        self.medium = nn.Linear(256, 512)
        self.router = nn.Linear(512, 8)
        self.tied = nn.Linear(512, 1024, bias=False)
        self.tied.weight = self.embedding.weight
        self.again = nn.ModuleList([self.wide])


@pytest.mark.parametrize(
    ("quantize", "threads", "capability", "expected"),
    [
        ("none", 1, "AVX2", {"wide"}),
        ("none", 2, "AVX2", {"wide", "square"}),
        ("none", 1, "AVX512", {"wide", "square"}),
        ("int8", 1, "AVX2", {"wide", "square", "medium", "tied"}),
    ],
)
def test_which_layers_are_replaced(
    monkeypatch: pytest.MonkeyPatch,
    quantize: str,
    threads: int,
    capability: str,
    expected: set[str],
) -> None:
    """Only layers that become faster are replaced, each once and without its old weight."""
    without_kernels(monkeypatch)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    torch.set_num_threads(threads)
    net = Net()

    assert prepared(net, quantize=quantize) == len(expected)

    replaced = set()
    for name, child in net.named_children():
        if isinstance(child, PackedLinear | Int8Linear):
            replaced.add(name)
    assert replaced == expected
    assert net.again[0] is net.wide, "a layer that is used twice is packed once"

    for name, _ in net.named_parameters():
        layer, _, _ = name.partition(".")
        # The tied layer's weight stays as the embedding's.
        assert layer == "tied" or layer not in expected, "the old weight is kept"


def test_small_layers_are_packed_where_no_row_may_depend_on_others() -> None:
    """In layers that are packed, no bit of a row depends on the number of rows."""
    if not operators.can_pack(torch.zeros(2, 2)):
        pytest.skip("needs the kernels in C")
    tied = nn.Linear(32, 48, bias=False)
    model = nn.Sequential(nn.Linear(48, 64), nn.Linear(64, 32, bias=False), tied)
    expected = model(torch.ones(1, 48))
    assert not keeps_rows_apart(model)

    pack_all_linears(model)

    assert keeps_rows_apart(model)
    rows = torch.randn(20, 48)
    alone = torch.cat([model(row[None]) for row in rows])
    assert model(rows).equal(alone)
    torch.testing.assert_close(model(torch.ones(1, 48)), expected)

    other = nn.Linear(32, 48, bias=False)
    other.weight = tied.weight
    sharing = nn.Sequential(tied, other)
    pack_all_linears(sharing)
    assert not keeps_rows_apart(sharing)


@pytest.mark.skipif(operators.library() is None, reason="there are no kernels here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_kernels_take_large_layers_with_any_number_of_threads(dtype: torch.dtype) -> None:
    net = Net().to(dtype)
    x = torch.randn(2, 3, 512).to(dtype)
    expected = net.wide(x)

    assert prepared(net) == 3

    for layer in (net.wide, net.square, net.medium):
        assert isinstance(layer, PanelLinear)
    for small in (net.small, net.router, net.tied):
        assert type(small) is nn.Linear
    tolerance = 1e-5 if dtype == torch.float32 else 2**-6
    torch.testing.assert_close(net.wide(x), expected, atol=tolerance, rtol=tolerance)


def test_bfloat16_is_packed_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_kernels(monkeypatch)
    torch.set_num_threads(2)
    for has_bfloat16 in (False, True):
        monkeypatch.setattr(
            torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda has=has_bfloat16: has
        )
        assert prepared(Net().to(torch.bfloat16)) == (2 if has_bfloat16 else 0)


def test_int8_layers_are_those_of_our_kernels_where_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Net()
    assert prepared(net, quantize="int8") == 4
    assert isinstance(net.wide, int8_layer())

    without_kernels(monkeypatch)
    net = Net()
    assert prepared(net, quantize="int8") == 4
    assert isinstance(net.wide, Int8Linear)


def test_bfloat16_goes_into_and_out_of_int8_layers() -> None:
    net = Net().to(torch.bfloat16)
    x = torch.randn(3, 512, dtype=torch.bfloat16)
    expected = net.wide(x)

    prepared(net, quantize="int8")
    assert isinstance(net.wide, int8_layer())
    torch.testing.assert_close(net.wide(x), expected, atol=0.05, rtol=0.05)


def test_int8_is_refused_on_another_device() -> None:
    """8-bit layers are for the CPU alone; the error names the model's device."""
    with pytest.raises(ModelFormatError, match="for the CPU; this model is on meta"):
        prepared(nn.Sequential(nn.Linear(512, 512, device="meta")), quantize="int8")


def test_int8_is_refused_without_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """8-bit layers are refused where torch has no fbgemm."""
    monkeypatch.setattr(torch._C, "_supported_qengines", lambda: [0, 2])
    with pytest.raises(ModelFormatError, match="fbgemm"):
        prepared(Net(), quantize="int8")
