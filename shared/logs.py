"""Log lines of every process: JSON for machines or key=value for people, on stderr, or as a `logging.yaml` says.

A record's `fields` (passed as `extra={"fields": {...}}`) become keys of the line.
"""

import json
import logging
import logging.config
import sys
from pathlib import Path
from typing import Any, Literal

import yaml


def configure_logging(level: str, style: Literal["json", "console"], config: Path = Path("logging.yaml")) -> None:
    """Send everything this process logs to stderr in one format.

    A `logging.yaml` in the working directory, in dictConfig form, is applied instead; one that cannot be applied, such
    as one that names classes not installed here, is passed over with a warning (X12).
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if style == "json" else ConsoleLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if config.is_file():
        try:
            logging.config.dictConfig(yaml.safe_load(config.read_text(encoding="utf-8")))
        except (ValueError, TypeError, AttributeError, ImportError, OSError, yaml.YAMLError) as error:
            logging.getLogger("aios.logs").warning("%s is passed over: %s", config, error)


class JsonLines(logging.Formatter):
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


class ConsoleLines(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        pairs = (f"{name}={value!r}" if isinstance(value, str) else f"{name}={value}" for name, value in fields.items())
        return " ".join([super().formatMessage(record), *pairs])
