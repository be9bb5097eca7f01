"""The recoverable ranges for people: a picture, a table of ranges, a table of gaps, an answer."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from pgrecall.app.recoverable_result import (
    Answer,
    ReachableRange,
    RecoverableResult,
    TimelinePath,
    WalGap,
)
from pgrecall.cli.rendering import moment, render, size
from pgrecall.model.findings import Finding

_NARROWEST = 24
_WIDEST = 120
_NOT_A_TERMINAL = 80


class Signs(NamedTuple):
    """The characters of the picture."""

    reachable: str
    gap: str
    backup: str
    goes_on: str


PLAIN = Signs("=", ".", "^", ">")
FINE = Signs("█", "░", "▲", "▶")


class RangeLine(msgspec.Struct, frozen=True):
    """A range as a line of the table."""

    timeline: int
    from_at: datetime | None
    to_at: datetime | None
    from_lsn: str
    to_lsn: str
    segments: int
    backups: int
    first_backup: str


class GapLine(msgspec.Struct, frozen=True):
    """A gap as a line of the table, with the commits before and behind it."""

    timeline: int
    cause: str
    first_missing: str
    segments: int
    gap_bytes: int
    after_at: datetime | None
    before_at: datetime | None
    explanation: str


class _Tables(msgspec.Struct, frozen=True):
    ranges: tuple[RangeLine, ...] = ()
    gaps: tuple[GapLine, ...] = ()
    findings: tuple[Finding, ...] = ()


def show_recoverable(result: RecoverableResult) -> None:
    """Write everything to standard output."""
    if result.answer is not None:
        _show_answer(result.answer)
        return
    out = sys.stdout
    newest = moment(result.newest_at) if result.newest_at is not None else "none"
    out.write(f"server {result.server}, repository {result.repository}\n")
    out.write(f"newest moment  {newest}")
    if result.newest_lsn:
        out.write(f"  (LSN {result.newest_lsn}, timeline {result.newest_timeline})")
    out.write("\n")
    columns = shutil.get_terminal_size((_NOT_A_TERMINAL, 24)).columns if out.isatty() else 80
    for generation in result.generations:
        if len(result.generations) > 1:
            latest = ", the latest" if generation.is_latest else ""
            out.write(
                f"\ngeneration {generation.generation} (PostgreSQL {generation.major_version},"
                f" system {generation.system_identifier}{latest})\n"
            )
        picture = draw(generation.paths, columns, signs_for(out.encoding))
        if picture:
            out.write("\n" + "\n".join(picture) + "\n")
        tables = _Tables(
            ranges=tuple(_range_line(one) for path in generation.paths for one in path.ranges),
            gaps=tuple(_gap_line(one) for path in generation.paths for one in path.gaps),
        )
        _show_tables(tables)
    _show_tables(_Tables(findings=result.findings))


def _show_tables(tables: _Tables) -> None:
    for name in tables.__struct_fields__:
        records = getattr(tables, name)
        if records:
            sys.stdout.write("\n" if name == "findings" else f"\n{name}\n")
            render(_Tables(**{name: records}))


def signs_for(encoding: str | None) -> Signs:
    """Fine characters where the output takes them, else plain ASCII."""
    try:
        "".join(FINE).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return PLAIN
    return FINE


def draw(paths: Sequence[TimelinePath], columns: int, signs: Signs) -> list[str]:
    """A bar for each timeline over one axis of time, the backups marked below it.

    Empty when no range has two moments to draw between.
    """
    moments = [at for path in paths for at in _moments(path)]
    if not moments or min(moments) == max(moments):
        return []
    axis = _Axis(min(moments), max(moments), max(_NARROWEST, min(columns, _WIDEST) - 16))
    lines = []
    for path in paths:
        bar, marks = [" "] * axis.width, [" "] * axis.width
        for gap in path.gaps:
            if gap.after_at is not None:
                end = gap.before_at if gap.before_at is not None else axis.last
                axis.fill(bar, gap.after_at, end, signs.gap)
        for found in path.ranges:
            begin = found.from_at or found.consistent_at
            axis.fill(bar, begin, found.to_at or begin, signs.reachable)
            for backup in found.backups:
                marks[axis.cell(backup.stopped_at)] = signs.backup
        # A gap that is shorter than a column must be seen all the same.
        for gap in path.gaps:
            if gap.after_at is not None:
                bar[axis.cell(gap.before_at or gap.after_at)] = signs.gap
        for alone in path.only_immediate:
            marks[axis.cell(alone.stopped_at)] = signs.backup
        if path.ranges and path.ranges[-1].is_open:
            last = path.ranges[-1]
            at = axis.cell(last.to_at or last.consistent_at) + 1
            bar[at : at + 1] = [signs.goes_on]
        star = "*" if path.is_default else " "
        lines.append(f"timeline {path.timeline:<4}{star} {''.join(bar)}".rstrip())
        lines.append(f"{'':<15}{''.join(marks)}".rstrip())
    left, right = (moment(at.replace(microsecond=0)) for at in (axis.first, axis.last))
    if axis.width > len(left) + len(right):
        lines.append(f"{'':<15}{left}{right:>{axis.width - len(left)}}")
    else:
        lines += [f"{'':<15}from {left}", f"{'':<15}to   {right}"]
    lines.append(
        f"{'':<15}{signs.reachable} reachable  {signs.gap} gap  {signs.backup} backup"
        "  * what a restore follows"
    )
    lines.append(f"{'':<15}blank: no backup leads there")
    return lines


class _Axis:
    """Moments to columns."""

    def __init__(self, first: datetime, last: datetime, width: int) -> None:
        self.first = first
        self.last = last
        self.width = width

    def cell(self, at: datetime) -> int:
        share = (at - self.first) / (self.last - self.first)
        return max(0, min(self.width - 1, int(share * self.width)))

    def fill(self, bar: list[str], begin: datetime, end: datetime, sign: str) -> None:
        for cell in range(self.cell(begin), self.cell(end) + 1):
            bar[cell] = sign


def _moments(path: TimelinePath) -> list[datetime]:
    found = [backup.stopped_at for one in path.ranges for backup in one.backups]
    found += [alone.stopped_at for alone in path.only_immediate]
    found += [at for one in path.ranges for at in (one.from_at, one.to_at) if at is not None]
    found += [at for gap in path.gaps for at in (gap.after_at, gap.before_at) if at is not None]
    return found


def _range_line(found: ReachableRange) -> RangeLine:
    return RangeLine(
        timeline=found.timeline,
        from_at=found.from_at,
        to_at=found.to_at,
        from_lsn=found.from_lsn,
        to_lsn=found.to_lsn,
        segments=sum(span.segments for span in found.segments),
        backups=len(found.backups),
        first_backup=found.backups[0].backup_id,
    )


def _gap_line(gap: WalGap) -> GapLine:
    return GapLine(
        timeline=gap.timeline,
        cause=gap.cause,
        first_missing=gap.first_missing,
        segments=gap.segments,
        gap_bytes=gap.gap_bytes,
        after_at=gap.after_at,
        before_at=gap.before_at,
        explanation=gap.explanation,
    )


def _show_answer(answer: Answer) -> None:
    out = sys.stdout
    if not answer.is_reachable:
        out.write(f"no, because {answer.reason}\n")
        if answer.hint:
            out.write(f"HINT: {answer.hint}\n")
        return
    out.write(f"yes: {answer.target}, from backup {answer.backup_id}")
    if answer.segments:
        plural = "segment" if answer.segments == 1 else "segments"
        out.write(
            f" with {answer.segments} {plural} on the way to timeline {answer.timeline}:"
            f" {answer.segment_names[0]} to {answer.segment_names[-1]}"
            f" ({size(answer.wal_bytes)}, stored {size(answer.stored_bytes)})"
        )
    at = f" of {moment(answer.stops_at_time)}" if answer.stops_at_time is not None else ""
    where = f" at {answer.stops_at_lsn}" if answer.stops_at_lsn else ""
    out.write(f"\nrecovery stops: {answer.stops_at}{where}{at}\n")
    out.write(f"{answer.reason}\n{answer.restore_command}\n")
