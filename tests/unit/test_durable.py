"""Durable files and ending signals."""

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrecall.errors import InterruptedRunError
from pgrecall.system.durable import write_durable
from pgrecall.system.signals import signals_as_errors


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    write_durable(str(path), [b"ne", b"w"], mode=0o640)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_after_an_error_the_old_file_stands(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise OSError("the source failed")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="the source failed"):
        write_durable(str(path), chunks())
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_file_and_directory_are_synced_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        calls.append("fsync directory" if is_directory else "fsync file")
        real_fsync(descriptor)

    def rename(source: str, target: str) -> None:
        calls.append("rename")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    write_durable(str(tmp_path / "file"), [b"x"])
    assert calls == ["fsync file", "rename", "fsync directory"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_raises_and_the_next_waits(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    cleaned_up = False
    with pytest.raises(InterruptedRunError, match=number.name), signals_as_errors():
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(signal.SIGTERM)  # must not cut this short
            cleaned_up = True
    assert cleaned_up
    assert signal.getsignal(number) == before


def test_an_ignored_signal_stays_ignored() -> None:
    code = (
        "import signal; from pgrecall.system.signals import signals_as_errors;"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with signals_as_errors(): signal.raise_signal(signal.SIGHUP)\n"
        "print('went on')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "went on\n"


def test_other_threads_are_left_alone() -> None:
    outcome: list[object] = []

    def work() -> None:
        with signals_as_errors():
            outcome.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcome == [before]
