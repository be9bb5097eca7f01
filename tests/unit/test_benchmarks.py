"""The measuring of the benchmarks: a tool that is measured wrongly is judged wrongly."""

import argparse
import os
import sys
from pathlib import Path

import pytest
from benchmarks.dataset import DatasetError
from benchmarks.jobs import Job
from benchmarks.measure import MeasureError, Measurement, Service, measure
from benchmarks.places import LocalPlace, S3Place
from benchmarks.recovery import replayed_segments, ways_of
from benchmarks.report import best_of, summary, table
from benchmarks.wal import parts_of

from pgrecall.settings import load_settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

_USE_MEMORY = "import time; x = bytearray(b'x') * 60_000_000; time.sleep(0.6)"
_USE_CPU = "import time\nwhile time.process_time() < 0.3: pass"
_BRIEF = "x = bytearray(b'x') * 150_000_000"
# Works for 0.3 s, says that it is ready, and for as long again when it is told to end.
_SERVICE = """
import signal, sys, time
def work():
    end = time.process_time() + 0.3
    while time.process_time() < end: pass
signal.signal(signal.SIGTERM, lambda *_: (work(), sys.exit(0)))
work()
open(sys.argv[1], 'x').close()
while True: time.sleep(1)
"""
# A daemon: its parent is gone before it begins.
_DAEMON = f"""
import os
if os.fork() == 0:
    os.setsid()
    exec({_USE_CPU!r})
    os._exit(0)
"""


def test_memory_of_the_whole_tree_is_summed() -> None:
    one = f"subprocess.Popen([sys.executable, '-c', {_USE_MEMORY!r}])"
    code = f"import subprocess, sys\n[p.wait() for p in [{one}, {one}]]"
    measured = measure([[sys.executable, "-c", code]])
    assert 120_000_000 < measured.peak_bytes < 200_000_000
    assert measured.wall_seconds > 0.3


def test_cpu_of_children_and_daemons_is_counted() -> None:
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_USE_CPU!r}])"
    for code in (child, _DAEMON):
        measured = measure([[sys.executable, "-c", code]])
        assert 0.3 <= measured.cpu_seconds < 2


def test_wall_time_ends_with_the_last_command_not_with_what_it_left_behind() -> None:
    measured = measure([[sys.executable, "-I", "-S", "-c", _DAEMON]])
    assert measured.wall_seconds < measured.cpu_seconds


def test_each_call_is_timed() -> None:
    slow = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(0.3)"]
    measured = measure([slow, [sys.executable, "-I", "-S", "-c", ""]])
    assert measured.calls[0] > 0.3 > measured.calls[1]


def test_a_failed_command_is_an_error_with_what_it_wrote(tmp_path: Path) -> None:
    mark = tmp_path / "went on"
    fails = [sys.executable, "-c", "import sys; sys.exit('the disk is on fire')"]
    with pytest.raises(MeasureError, match="the disk is on fire"):
        measure([fails, ["/usr/bin/env", "touch", os.fspath(mark)]])
    assert not mark.exists()


def test_the_largest_process_is_known_however_short_it_lived() -> None:
    measured = measure([[sys.executable, "-I", "-S", "-c", _BRIEF]], samples=False)
    assert measured.peak_bytes == 0
    assert 150_000_000 < measured.largest_bytes < 200_000_000
    assert measured.largest_bytes > measured.floor_bytes


def test_what_is_smaller_than_the_measuring_process_is_not_said_to_be_known() -> None:
    small = measure([["/bin/true"]])
    job = Job("wal push", "1 segment")
    job.runs["small"] = [small]
    assert "under" in table(job)


def test_a_cold_service_is_in_the_clock_and_in_the_cpu(tmp_path: Path) -> None:
    ready = str(tmp_path / "ready")
    service = Service([sys.executable, "-I", "-S", "-c", _SERVICE, ready], ready)
    measured = measure([["/bin/true"]], service=service)
    assert measured.wall_seconds > 0.6
    assert measured.cpu_seconds > 0.6
    assert len(measured.calls) == 1


def test_a_warm_service_counts_only_while_the_clock_runs(tmp_path: Path) -> None:
    ready, file = str(tmp_path / "ready"), tmp_path / "appears"
    service = Service(
        [sys.executable, "-I", "-S", "-c", _SERVICE, ready], ready, is_warm=True, settle_seconds=0
    )
    calls = [["/usr/bin/env", "test", "-e", str(file)]]
    measured = measure(calls, service=service, appearing=[file])
    assert measured.wall_seconds == pytest.approx(measured.calls[0], abs=0.5)
    assert measured.cpu_seconds < 0.3


def test_a_warm_service_counts_what_it_does_for_the_commands(tmp_path: Path) -> None:
    ready = str(tmp_path / "ready")
    busy = f"open({ready!r}, 'x').close()\nwhile True: pass"
    service = Service(
        [sys.executable, "-I", "-S", "-c", busy], ready, is_warm=True, settle_seconds=0
    )
    measured = measure([["/bin/sleep", "0.5"]], service=service)
    assert 0 < measured.cpu_seconds <= measured.wall_seconds + 0.2


@pytest.mark.parametrize(
    "code", ["import sys; sys.exit(3)", _SERVICE.replace("while True", "if 0")]
)
def test_a_service_that_ends_by_itself_is_an_error(tmp_path: Path, code: str) -> None:
    ready = str(tmp_path / "ready")
    service = Service([sys.executable, "-I", "-S", "-c", code, ready], ready)
    with pytest.raises(MeasureError, match="the service"):
        measure([["/bin/sleep", "0.3"]] * 2, service=service)


def test_the_service_is_ended_when_a_command_fails(tmp_path: Path) -> None:
    ready, ended = tmp_path / "ready", tmp_path / "ended"
    code = _SERVICE.replace("(work(),", f"(open({str(ended)!r}, 'x').close(),")
    service = Service([sys.executable, "-I", "-S", "-c", code, str(ready)], str(ready))
    with pytest.raises(MeasureError):
        measure([["/bin/false"]], service=service)
    assert ended.exists()


def test_both_tools_are_told_the_same_place(tmp_path: Path) -> None:
    for name in ("access", "secret"):
        (tmp_path / name).write_text(name)
    for place in (
        LocalPlace(tmp_path / "repo"),
        S3Place("https://localhost:1234", tmp_path, tmp_path / "authority.pem"),
    ):
        place.renew()
        config = tmp_path / "pgrecall.toml"
        config.write_text(place.toml())
        read = load_settings(str(config), {}).repositories["main"]
        assert read == place.settings()
        assert place.pgbackrest()["repo1-path"].lstrip("/") in f"{read.path}{read.prefix}"


def test_each_run_on_s3_has_an_empty_prefix(tmp_path: Path) -> None:
    first, second = (S3Place("https://localhost:1", tmp_path, tmp_path / "a") for _ in range(2))
    prefixes = set()
    for place in (first, second, first):
        place.renew()
        prefixes.add(place.settings().prefix)
    assert len(prefixes) == 3


def test_a_recovery_that_ended_too_soon_is_an_error() -> None:
    names = ["0000000100000000000000FE", "0000000100000000000000FF", "000000010000000100000000"]
    assert replayed_segments(names, (1 << 32) + 100) == 3
    assert replayed_segments(names, (1 << 32) + (17 << 20)) == 3
    with pytest.raises(DatasetError, match="1 segments before"):
        replayed_segments(names, 1 << 32)


def test_ways_and_parts_are_chosen_by_name() -> None:
    assert ways_of("agent") == ("cp", "agent")
    assert parts_of("receiver,backlog") == ("backlog", "receiver")
    for choose in (ways_of, parts_of):
        with pytest.raises(argparse.ArgumentTypeError, match="nonsense"):
            choose("nonsense")


def test_the_best_configuration_is_the_one_with_the_lowest_median() -> None:
    job = Job("full backup", "1 file")
    walls = {
        "pgrecall": [2.0, 1.0, 9.0],
        "pgBackRest a": [1.0, 6.0, 7.0],
        "pgBackRest b": [5.0] * 3,
    }
    for name, values in walls.items():
        job.runs[name] = [Measurement(value, 0.0, 0, stored_bytes=100) for value in values]
    assert best_of(job, "pgBackRest") == "pgBackRest b"
    assert "**2.50**" in summary([job])
