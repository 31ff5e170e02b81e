"""Logging of every process: JSON lines for machines or text for people, on stderr.

A `logging.yaml` in the working directory replaces that.

The message of each of our lines is the name of an event, always in the same words. The values that
vary are in the record's fields, which become keys of the line. `docs/logs.md` lists the events.
"""

import json
import logging
import logging.config
import sys
from pathlib import Path
from typing import Any, Literal

import yaml

from shared.messages import Job

Style = Literal["auto", "json", "console", "classic"]

_TEXT: dict[Style, str] = {
    "console": "%(asctime)s %(levelname)s %(name)s: %(message)s",
    "classic": "%(asctime)s - %(name)s - %(levelname)s - %(message)s",
}

_BAD_CONFIG = (ValueError, TypeError, AttributeError, ImportError, OSError, yaml.YAMLError)
"""All that dictConfig may raise for a file that makes no sense."""


def chosen_style(style: Style) -> Style:
    """Return the style that `auto` means: for people where stderr is a terminal, else JSON."""
    if style != "auto":
        return style
    return "console" if sys.stderr.isatty() else "json"


def configure_logging(level: str, style: Style, config: Path = Path("logging.yaml")) -> None:
    """Send everything this process logs to stderr in one format, warnings of libraries included.

    A `logging.yaml` in the working directory, in dictConfig form, is applied instead. One that
    cannot be applied, such as one that names classes not installed here, is left out with a
    warning.
    """
    style = chosen_style(style)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if style == "json" else TextLines(_TEXT[style]))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)

    if not config.is_file():
        return
    try:
        logging.config.dictConfig(yaml.safe_load(config.read_text(encoding="utf-8")))
    except _BAD_CONFIG as error:
        log = logging.getLogger("aios.logs")
        log.warning("logging.yaml passed over", extra=fields(file=str(config), error=str(error)))


def fields(**values: Any) -> dict[str, Any]:
    """Return the `extra` of a logging call: the fields of an event, without those that are None."""
    return {"fields": {name: value for name, value in values.items() if value is not None}}


def job_fields(job: Job, **more: Any) -> dict[str, Any]:
    """Return the `extra` of a line that concerns a job: its ids, and the id of its trace."""
    return fields(job_id=job.id, request_id=job.request_id or None, trace_id=job.trace.id, **more)


class JsonLines(logging.Formatter):
    """Lines of JSON, with the fields as keys."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextLines(logging.Formatter):
    """Text lines with the fields as name=value behind the message."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        values: dict[str, Any] = getattr(record, "fields", {})
        parts = [super().formatMessage(record)]
        for name, value in values.items():
            shown = repr(value) if isinstance(value, str) else value
            parts.append(f"{name}={shown}")
        return " ".join(parts)
