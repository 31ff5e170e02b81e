"""What was logged while a test ran: events by name, each with its fields."""

from typing import Any

import pytest


def fields_of(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    """Of every line of this event, the oldest first."""
    return [
        record.__dict__.get("fields", {})
        for record in caplog.records
        if record.getMessage() == event
    ]
