"""Logs: one line for each message on standard error, with the run's identity.

Rooms below use ``logging.getLogger(__name__)`` and pass facts by ``extra``:
``log.info("backup complete", extra={"backup_id": id, "stored_bytes": n})``.
They become ``key=value`` pairs, or members of a JSON object.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LineFormatter(logging.Formatter):
    """``2026-11-22T20:16:37.123Z INFO pgrecall.backup.run: message run=r-... key=value``."""

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self._run_id = run_id

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback, if there is one, follows on lines of its own."""
        pairs = {"run": self._run_id, **_facts(record)}
        shown = " ".join(f"{key}={_quoted(str(value))}" for key, value in pairs.items())
        message = record.getMessage().replace("\n", "\\n")
        line = f"{_moment(record)} {record.levelname} {record.name}: {message} {shown}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: at, level, logger, message, run, and the facts."""

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self._run_id = run_id

    def format(self, record: logging.LogRecord) -> str:
        """One line, always; a traceback is the member ``traceback``."""
        entry: dict[str, object] = {
            "at": _moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "run": self._run_id,
            **_facts(record),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class _StandardErrorHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what sys.stderr is at that moment: a progress bar puts itself in between."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def configure_logs(*, level: str, output: str, run_id: str) -> None:
    """Send pgrecall's log to standard error; replaces an earlier configuration.

    ``level`` and ``output`` are values of LogSettings.level and LogSettings.format.
    """
    handler = _StandardErrorHandler()
    handler.setFormatter(JsonFormatter(run_id) if output == "json" else LineFormatter(run_id))
    logger = logging.getLogger("pgrecall")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def _facts(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _moment(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _quoted(text: str) -> str:
    plain = text and text.isprintable() and not set(text) & set(' "=\\')
    return text if plain else json.dumps(text, ensure_ascii=False)
