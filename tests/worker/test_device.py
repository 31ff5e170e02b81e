"""Choosing a device: named and missing is an error, `auto` falls back (D3, D7, X14)."""

import pytest
import torch

from shared.settings import SettingsError
from worker.device import choose


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu"), (True, False, "cuda")],
)
def test_auto_takes_the_best_that_is_there(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, chosen: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose("auto") == chosen


def test_a_named_device_that_is_missing_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="device: 'cuda' was asked for"):
        choose("cuda")
    assert choose("cpu") == "cpu"
