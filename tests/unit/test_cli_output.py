"""How results, plans, logs and progress look."""

import io
import json
import logging
import sys
import threading
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from rich.text import Text

from pgrecall.app.logs import configure_logs
from pgrecall.cli import progress as progress_module
from pgrecall.cli.approval import Approval
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.progress import BarProgress, LineProgress, choose_progress
from pgrecall.cli.rendering import duration, moment, render, show, size
from pgrecall.errors import ConfirmationError
from pgrecall.model.findings import Finding
from pgrecall.model.targets import ToName
from pgrecall.system.progress import NoProgress


class Row(msgspec.Struct, frozen=True):
    backup_id: str
    stored_bytes: int


class Result(msgspec.Struct, frozen=True):
    target: ToName
    took_seconds: float
    ended_at: datetime
    is_whole: bool = True
    nothing: str = ""
    absent: int | None = None
    rows: tuple[Row, ...] = ()
    findings: tuple[Finding, ...] = ()


RESULT = Result(
    target=ToName("a b"),
    took_seconds=75.4,
    ended_at=datetime(2026, 11, 22, 21, 16, 37, tzinfo=timezone(timedelta(hours=1))),
    rows=(Row("b-1", 123_456_789), Row("[red]long id", 1)),
    findings=(Finding("fail", "x", "is bad", "pg_wal", "mend [b]it"), Finding("ok", "y", "fine")),
)


def test_a_result_for_people_in_plain_columns(capsys: pytest.CaptureFixture[str]) -> None:
    render(RESULT)
    assert capsys.readouterr().out == (
        "target    restore point 'a b'\n"
        "took      1 min 15 s\n"
        "ended at  2026-11-22 20:16:37 UTC\n"
        "is whole  yes\n"
        "\n"
        "rows\n"
        "backup id     stored\n"
        "b-1           118 MiB\n"
        "[red]long id  1 B\n"
        "\n"
        "findings\n"
        "fail pg_wal: is bad\n"
        "     HINT: mend [b]it\n"
        "ok   fine\n"
    )


def test_a_result_on_a_terminal_has_all_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    render(RESULT)
    text = Text.from_ansi(stream.getvalue()).plain
    for cell in ("restore point 'a b'", "[red]long id", "118 MiB", "mend [b]it"):
        assert cell in text


def test_json_carries_its_schema(capsys: pytest.CaptureFixture[str]) -> None:
    Invocation({"json": True}).emit(Row("b-1", 1), "thing/1")
    document = json.loads(capsys.readouterr().out)
    assert document == {"schema": "pgrecall/thing/1", "backup_id": "b-1", "stored_bytes": 1}


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536 << 20, "1.50 GiB"),
        (1 << 62, "4096 PiB"),
    ],
)
def test_sizes(given: int, shown: str) -> None:
    assert size(given) == shown


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (60, "1 min 00 s"),
        (3600, "1 h 00 min"),
        (90_000, "1 d 01 h"),
    ],
)
def test_durations(given: float, shown: str) -> None:
    assert duration(given) == shown


def test_moments_are_utc() -> None:
    assert moment(datetime(2026, 1, 1, 0, 0, 0, 500_000, UTC)) == "2026-01-01 00:00:00.500000 UTC"
    assert show("map", {"a": 1}) == "a = 1"


# --- approval -------------------------------------------------------------------


def test_a_plan_is_shown_and_a_dry_run_stops(capsys: pytest.CaptureFixture[str]) -> None:
    plan = Row("b-1", 1)
    assert Approval(as_json=False, dry_run=True, is_approved=True)(plan, question="Sure?") is False
    assert "b-1" in capsys.readouterr().out
    assert Approval(as_json=False, dry_run=False, is_approved=False)(plan) is True
    assert Approval(as_json=True, dry_run=False, is_approved=True)(plan, question="Sure?") is True


def test_without_a_terminal_nothing_is_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(ConfirmationError) as caught:
        Approval(as_json=False, dry_run=False, is_approved=False)(Row("b", 1), question="Sure?")
    assert "--yes" in caught.value.hint


# --- logs -----------------------------------------------------------------------


def log_once(output: str, capsys: pytest.CaptureFixture[str]) -> str:
    configure_logs(level="info", output=output, run_id="r-1")
    logger = logging.getLogger("pgrecall.test")
    logger.debug("not shown")
    try:
        int("oops")
    except ValueError:
        logger.exception("line\nbreak", extra={"path": "a b", "stored_bytes": 7})
    return capsys.readouterr().err


def test_log_lines_carry_the_run_and_facts(capsys: pytest.CaptureFixture[str]) -> None:
    first, *rest = log_once("text", capsys).splitlines()
    assert first.endswith('ERROR pgrecall.test: line\\nbreak run=r-1 path="a b" stored_bytes=7')
    assert first[:2] == "20"
    assert rest[-1].startswith("ValueError: ")


def test_json_logs_are_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = log_once("json", capsys).splitlines()
    entry = json.loads(line)
    assert (entry["run"], entry["level"], entry["stored_bytes"]) == ("r-1", "error", 7)
    assert entry["message"] == "line\nbreak"
    assert "ValueError: " in entry["traceback"]


# --- progress --------------------------------------------------------------------


def test_progress_fits_the_stream(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(choose_progress(as_json=True), NoProgress)
    assert isinstance(choose_progress(as_json=False), LineProgress)


def test_lines_tell_bytes_rate_and_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    lines = LineProgress()
    lines.phase("copy")
    lines.start(30 << 20)
    now = 104.9
    lines.advance(5 << 20)
    now = 105.0
    lines.advance(5 << 20)
    lines.done()
    assert capsys.readouterr().err.splitlines() == [
        "copy",
        "copy: 10.0 MiB of 30.0 MiB, 2.00 MiB/s, 10.0 s to go",
    ]


def test_the_bar_counts_from_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = BarProgress()
    bar.phase("copy")
    bar.start(8000)
    threads = [
        threading.Thread(target=lambda: [bar.advance(1) for _ in range(1000)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bar._bars is not None
    assert bar._bars.tasks[0].completed == 8000
    bar.phase("sync")
    bar.done()
    bar.done()
