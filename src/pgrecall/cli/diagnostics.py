"""How errors look at the edge: text with a HINT line, or a JSON object (light)."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

from pgrecall.errors import ReportedError


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether --json is among the options, known even when the rest does not parse."""
    words = list(arguments)
    options = words[: words.index("--")] if "--" in words else words
    return "--json" in options


def json_line(document: Mapping[str, object]) -> str:
    """One line of JSON that standard output can take: ASCII where its encoding is no better."""
    text = json.dumps(document, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = json.dumps(document)  # also for names of files that are not Unicode
    return text + "\n"


def report_error(error: ReportedError, *, as_json: bool) -> int:
    """Write ``error`` to standard error, or as JSON to standard output; returns its exit status."""
    if as_json:
        content = {
            "code": error.code,
            "message": error.message,
            "hint": error.hint,
            "exit_status": error.exit_status,
        }
        document = {"schema": "pgrecall/error/1", "error": content}
        sys.stdout.write(json_line(document))
        sys.stdout.flush()
    else:
        lines = f"pgrecall: {error.message}\n"
        if error.hint:
            lines += f"HINT: {error.hint}\n"
        sys.stderr.write(lines)
        sys.stderr.flush()
    return error.exit_status
