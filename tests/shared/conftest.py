"""Fixtures that several files of tests use."""

import pytest

from shared.queue import reservations


@pytest.fixture
def waits_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait long for an answer, so that a busy machine does not look like a server that is away."""
    monkeypatch.setattr(reservations, "ANSWER_S", 60.0)
