"""The measuring of the benchmarks: a tool that is measured wrongly is judged wrongly."""

import os
import sys
from pathlib import Path

import pytest
from benchmarks.jobs import Job
from benchmarks.measure import MeasureError, Measurement, measure
from benchmarks.report import best_of, summary

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

_USE_MEMORY = "import time; x = bytearray(b'x') * 60_000_000; time.sleep(0.3)"
_USE_CPU = "import time\nwhile time.process_time() < 0.3: pass"
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
