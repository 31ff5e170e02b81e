"""The choice of a device and a dtype (D3, D4, D5, D7, A48, X14).

A device that is named and missing is an error; `auto` falls back.
"""

import logging
from types import SimpleNamespace

import pytest
import torch

from shared.settings.settings import ModelEntry, Settings, SettingsError
from tests.fixtures.logged import fields_of
from worker.hardware.device import choose_dtype, device_capabilities, select_device
from worker.host.loading import load_models, obstacles


def offer(
    monkeypatch: pytest.MonkeyPatch, *, cuda: bool = False, mps: bool = False, bf16: bool = True
) -> None:
    """Let torch report a machine with these accelerators."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    facts = SimpleNamespace(name="A GPU", total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: facts)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 8 * 2**30)


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, True, "cuda:0"), (False, True, "mps"), (False, False, "cpu"), (True, False, "cuda:0")],
)
def test_auto_takes_the_best_that_is_there(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, chosen: str
) -> None:
    """`auto` is the default, and takes CUDA, then MPS, then the CPU."""
    offer(monkeypatch, cuda=cuda, mps=mps)
    assert select_device("auto") == torch.device(chosen)
    assert select_device() == torch.device(chosen)


@pytest.mark.parametrize(("wanted", "there"), [("cuda", "mps, cpu"), ("mps", "cuda, cpu")])
def test_a_named_device_that_is_missing_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, wanted: str, there: str
) -> None:
    """The refusal of a missing device lists those that are there."""
    offer(monkeypatch, cuda=wanted == "mps", mps=wanted == "cuda")
    sentence = f"device: '{wanted}' was asked for .* there is {there}$"
    with pytest.raises(SettingsError, match=sentence):
        select_device(wanted)
    assert select_device("cpu") == torch.device("cpu")


def test_a_named_device_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is named and there is taken, whatever else is there."""
    offer(monkeypatch, cuda=True, mps=True)
    assert str(select_device("cuda")) == "cuda:0"
    assert str(select_device("mps")) == "mps"
    assert str(select_device("cpu")) == "cpu"


def test_capabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    """The capabilities name the accelerators, the GPU and its memory."""
    offer(monkeypatch)
    assert device_capabilities() == {
        "cuda": False,
        "mps": False,
        "gpu_name": None,
        "memory_gb": None,
    }

    offer(monkeypatch, cuda=True)
    assert device_capabilities() == {
        "cuda": True,
        "mps": False,
        "gpu_name": "A GPU",
        "memory_gb": 24.0,
    }

    offer(monkeypatch, mps=True)
    assert device_capabilities()["memory_gb"] == 8.0


@pytest.mark.parametrize(
    ("device", "bf16", "expected"),
    [
        ("cuda:0", True, "bfloat16"),
        ("cuda:0", False, "float16"),
        ("cpu", True, "float32"),
        ("mps", True, "float32"),
    ],
)
def test_auto_dtype_is_what_the_device_is_fast_with(
    monkeypatch: pytest.MonkeyPatch, device: str, bf16: bool, expected: str
) -> None:
    """`auto` takes the dtype that the device is fast with (A48).

    On the CPU that is float32, for which P3 is promised.
    """
    offer(monkeypatch, cuda=True, mps=True, bf16=bf16)
    assert choose_dtype("auto", torch.device(device)) == expected
    assert choose_dtype("float32", torch.device(device)) == "float32"


def test_the_device_is_logged_at_start_with_what_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The chosen device is logged with its capabilities (D5).

    On the CPU the default model is served in float32 by default.
    """
    offer(monkeypatch)
    with caplog.at_level(logging.INFO):
        model, *_ = load_models(Settings())

    [fields] = fields_of(caplog, "device chosen")
    assert fields["device"] == "cpu"
    assert fields["cuda"] is False
    assert model.info.found.endswith("float32")


def test_d6_a_model_that_requires_a_gpu_is_left_out_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model that requires a GPU is left out without one, and the others are served (D6).

    A worker that would serve none does not start.
    """
    offer(monkeypatch)
    big = ModelEntry(id="big", path="x", gpu_required=True)
    small = ModelEntry(id="small", path="echo")
    settings = Settings(models=(big, small))

    [model] = load_models(settings)
    assert model.info.id == "small"
    assert obstacles(settings).keys() == {"big"}
    assert "'big' requires a GPU" in obstacles(settings)["big"]
    with pytest.raises(SettingsError, match=r"'big' requires a GPU.*quantize: int8"):
        load_models(Settings(models=(big,)))

    offer(monkeypatch, cuda=True)
    assert obstacles(settings) == {}
    assert obstacles(settings.model_copy(update={"device": "cpu"})).keys() == {"big"}
