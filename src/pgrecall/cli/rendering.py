"""Results for people. The names of fields say their units, so that one renderer serves all.

``*_bytes``, ``*_seconds`` and ``*_at`` are shown as sizes, durations and times; a
list of records becomes a table, findings a list with their cures. On a terminal
the tables are Rich's; elsewhere plain columns that are never cut.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pgrecall.model.findings import Finding

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


def render(result: msgspec.Struct, *, without: Collection[str] = ()) -> None:
    """Write a result to standard output; fields named in ``without`` are left out."""
    facts: list[tuple[str, str]] = []
    blocks: list[tuple[str, Sequence[msgspec.Struct]]] = []
    _collect(result, "", facts, blocks, without)
    if facts:
        _write_table([], facts)
    for title, records in blocks:
        if title and (facts or len(blocks) > 1):
            sys.stdout.write(f"\n{title}\n")
        if isinstance(records[0], Finding):
            _write_findings([record for record in records if isinstance(record, Finding)])
        else:
            fields = records[0].__struct_fields__
            rows = [[show(name, getattr(record, name)) for name in fields] for record in records]
            _write_table([label(name) for name in fields], rows)


def _collect(
    record: msgspec.Struct,
    prefix: str,
    facts: list[tuple[str, str]],
    blocks: list[tuple[str, Sequence[msgspec.Struct]]],
    without: Collection[str] = (),
) -> None:
    for name in record.__struct_fields__:
        if name in without:
            continue
        value = getattr(record, name)
        if isinstance(value, list | tuple) and value and isinstance(value[0], msgspec.Struct):
            blocks.append((label(name), value))
        elif isinstance(value, msgspec.Struct) and type(value).__str__ is object.__str__:
            _collect(value, f"{prefix}{label(name)} ", facts, blocks)
        elif value is not None and value not in ("", (), [], {}):
            facts.append((prefix + label(name), show(name, value)))


def label(name: str) -> str:
    """A field's name as a heading, without the suffix that its value shows."""
    for suffix in ("_bytes", "_seconds"):
        name = name.removesuffix(suffix)
    return name.replace("_", " ")


def show(name: str, value: object) -> str:
    """A field's value as text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes") and isinstance(value, int):
        return size(value)
    if name.endswith("_seconds") and isinstance(value, int | float):
        return duration(value)
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {inner}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], msgspec.Struct):
            return str(len(value))
        return ", ".join(str(part) for part in value)
    return str(value)


def size(count_bytes: int) -> str:
    """``1.50 GiB``; three digits that matter."""
    amount = float(count_bytes)
    steps = 0
    while abs(amount) >= 1024 and steps < len(_UNITS) - 1:
        amount /= 1024
        steps += 1
    if steps == 0:
        return f"{count_bytes} B"
    digits = 2 if amount < 10 else 1 if amount < 100 else 0
    return f"{amount:.{digits}f} {_UNITS[steps]}"


def duration(seconds: float) -> str:
    """``12.3 s``, ``4 min 05 s``, ``2 h 03 min``, ``3 d 04 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600:02d} h"


def moment(at: datetime) -> str:
    """An aware moment in UTC, to the second unless it has a fraction."""
    shown = at.astimezone(UTC)
    return shown.isoformat(sep=" ", timespec="auto").replace("+00:00", " UTC")


def _write_findings(findings: list[Finding]) -> None:
    console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
    for finding in findings:
        line = Text(f"{finding.severity:<4} ", style=_STYLES[finding.severity])
        subject = f"{finding.subject}: " if finding.subject else ""
        line.append(f"{subject}{finding.message}", style="default")
        console.print(line)
        if finding.hint and finding.severity != "ok":
            console.print(Text(f"     HINT: {finding.hint}"))


def _write_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    if sys.stdout.isatty():
        table = Table(show_header=bool(headings), box=None, pad_edge=False)
        for heading in headings or ("", ""):
            table.add_column(Text(heading), overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Console(file=sys.stdout, highlight=False).print(table)
        return
    lines = [list(headings), *map(list, rows)] if headings else [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
