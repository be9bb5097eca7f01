"""``python -m benchmarks.run``: pgrecall beside pgBackRest and pg_basebackup; see README.md."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.dataset import (
    Cluster,
    DatasetError,
    Programs,
    directory_facts,
    free_memory_bytes,
    touch_memory,
    warm,
)
from benchmarks.entry import free_port, programs_of, versions
from benchmarks.jobs import Job, back_up, push_wal, restore
from benchmarks.measure import MeasureError
from benchmarks.peers import (
    Pgrecall,
    Tool,
    base_backup_tools,
    pgbackrest_archivers,
    pgbackrest_tools,
)
from benchmarks.phases import phases_section
from benchmarks.places import EncryptedPlace
from benchmarks.report import Facts, document, encryption_section, summary
from benchmarks.stages import stages_section
from pgrecall.errors import PgrecallError
from pgrecall.system.signals import signals_as_errors

_SMALL_TABLES = 5_000
_SPACE_BYTES_PER_SCALE = 80_000_000

_NOTES = (
    "Every tool does each job once per round, one after another (A B C, A B C ...); the figures"
    " are medians of the rounds. Data directory and destination are on the same file system.",
    "Before a round of a tool, outside the timing: its old output is removed, its repository made"
    " anew, archive_command set to its own command and one segment archived through it, a"
    " checkpoint taken, everything synced. The page cache is warm; free memory was touched before.",
    "Each tool writes as durably as it does by default: all of them sync. Each waits until the"
    " WAL that the backup needs is archived: pgrecall through `wal push`, pgBackRest through"
    " `archive-push`, pg_basebackup (`-X none`) through `cp`. All ask for a fast checkpoint.",
    "pgrecall runs with its default settings (zstd level 1, a thread for each core; restore: two),"
    " pgBackRest with process-max=2 and otherwise with its defaults.",
    "Restore: the newest backup, to be recovered until it is consistent (`--immediate`,"
    " `--type=immediate`), into an empty directory; the server is not started.",
    "`wal push`: segments that a pgbench run left behind, one process for each, one after another,"
    " as PostgreSQL calls archive_command; until the last one was answered.",
    "CPU: user and system time of all processes of the tool. Server CPU: of PostgreSQL's processes"
    " meanwhile, archive_command included. Peak: the largest sum of the proportional set sizes of"
    " all processes of the tool, sampled after 10, 30, 70, 150 ms and then every 100 ms;"
    " largest: the largest resident size that a single process had at any time (a size below that"
    " of the measuring process is not known). Sampler: CPU of looking at the memory, not part of"
    " the tool's."
    " Stored: bytes of the backup's files, WAL left out; for `wal push` those of the archive.",
)


def main(argv: Sequence[str]) -> int:
    """Parse, measure, report."""
    options = _parser().parse_args(argv)
    try:
        with signals_as_errors():
            _measure(options, _command(options))
    except (DatasetError, MeasureError, PgrecallError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--pg-bin", type=Path, help="PostgreSQL's programs; default: the wheel's")
    parser.add_argument("--pg-share", default="", help="initdb's -L; default: beside --pg-bin")
    parser.add_argument("--pgbackrest", type=Path, help="default: leave pgBackRest out")
    parser.add_argument("--scale", type=int, default=200, help="pgbench scale; 200: about 4 GB")
    parser.add_argument("--small-tables", type=int, default=_SMALL_TABLES, metavar="COUNT")
    parser.add_argument("--segments", type=int, default=150, help="WAL segments to push")
    parser.add_argument(
        "--encrypted", action="store_true", help="an encrypted repository as well, and the ratio"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--jobs", default="main,wal,small", help="which of main, wal, small; default: all"
    )
    parser.add_argument(
        "--data-dir", type=Path, help="use this data directory (made before, or by somebody)"
    )
    parser.add_argument("--work", type=Path, help="where everything is written; default: TMPDIR")
    parser.add_argument("--report", type=Path, default=Path("docs/benchmarks.md"))
    parser.add_argument("--raw", type=Path, help="write every run as JSON")
    return parser


def _command(options: argparse.Namespace) -> str:
    """The command without the paths of this machine."""
    words = ["python -m benchmarks.run", f"--scale {options.scale}", f"--rounds {options.rounds}"]
    words += [f"--segments {options.segments}", f"--small-tables {options.small_tables}"]
    words += [f"--jobs {options.jobs}"]
    if options.encrypted:
        words.append("--encrypted")
    if options.pg_bin:
        words.append("--pg-bin DIRECTORY")
    if options.pgbackrest:
        words.append("--pgbackrest PROGRAM")
    return " ".join(words)


def _measure(options: argparse.Namespace, command: str) -> None:
    work = Path(tempfile.mkdtemp(prefix="bench-", dir=options.work))
    session = _Session(options, work)
    try:
        jobs = session.run()
        facts = Facts(command, work, session.versions, _NOTES)
        options.report.write_text(document(jobs, facts, session.sections), encoding="utf-8")
        if options.raw:
            raw = [
                {"title": job.title, "subject": job.subject}
                | {name: [vars(run) for run in runs] for name, runs in job.runs.items()}
                for job in jobs
            ]
            options.raw.write_text(json.dumps(raw, indent=1), encoding="utf-8")
        print(summary(jobs))
        print(f"wrote {options.report}")
    finally:
        session.close()
        shutil.rmtree(work, ignore_errors=True)


class _Session:
    """Servers and tools of one run of the benchmark."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.sections: list[str] = []
        self._options = options
        self._work = work
        self._began = time.monotonic()
        self._programs = programs_of(options.pg_bin, options.pg_share)
        self.versions = versions(self._programs, options.pgbackrest)
        self._pgrecall = Path(sys.executable).parent / "pgrecall"
        self._clusters: list[Cluster] = []

    def run(self) -> list[Job]:
        """All jobs that were asked for."""
        wanted = set(self._options.jobs.split(","))
        needed = _SPACE_BYTES_PER_SCALE * self._options.scale + (4 << 30)
        if shutil.disk_usage(self._work).free < needed:
            raise DatasetError(f"{self._work} needs {needed >> 30} GiB free")
        touch_memory(free_memory_bytes() * 9 // 10)
        jobs: list[Job] = []
        if wanted & {"main", "wal"}:
            cluster = self._main_cluster()
            try:
                if "wal" in wanted:
                    jobs += self._wal(cluster)
                if "main" in wanted:
                    jobs += self._copies(cluster, "", explains=True)
            finally:
                cluster.archive_as_before()
                cluster.stop()
        if "small" in wanted:
            cluster = self._small_cluster()
            jobs += self._copies(cluster, f"{self._options.small_tables} small tables, ")
            cluster.stop()
        order = {"full backup": 0, "restore": 0, "wal push": 1}
        jobs.sort(key=lambda job: order[job.title])
        return jobs

    def close(self) -> None:
        """Stop the servers that were started."""
        for cluster in self._clusters:
            cluster.stop()

    # --- parts -------------------------------------------------------------------

    def _copies(self, cluster: Cluster, what: str, *, explains: bool = False) -> list[Job]:
        warm(cluster.data_directory)
        count, size = directory_facts(cluster.data_directory)
        subject = f"{what}{count:,} files, {size / 1e9:.2f} GB"
        tools: list[Tool] = [Pgrecall("", self._work / "pgrecall", self._pgrecall)]
        if self._options.encrypted:
            place = self._work / "pgrecall-encrypted"
            encrypted = EncryptedPlace(place / "repo")
            tools.append(Pgrecall("encrypted", place, self._pgrecall, repository=encrypted))
        if self._options.pgbackrest:
            tools += pgbackrest_tools(self._options.pgbackrest, self._work)
        tools += base_backup_tools(self._programs, self._work)
        rounds = self._options.rounds
        target = self._work / "restored"
        backups = back_up(cluster, tools, subject, rounds=rounds, say=self._say)
        restores = restore(tools, subject, target, rounds=rounds, say=self._say, expected=size)
        if self._options.encrypted:
            cost = encryption_section([backups, restores], tools[0], tools[1])
            self.sections.append(cost)
            self._say(cost)
        self.sections.append(phases_section(tools[0], cluster, target, f"{count:,} files"))
        if explains:
            self.sections.append(stages_section(cluster.data_directory, self._work))
        for tool in tools:
            shutil.rmtree(tool.place, ignore_errors=True)
        return [backups, restores]

    def _wal(self, cluster: Cluster) -> list[Job]:
        self._note(f"collecting {self._options.segments} segments of WAL")
        segments = cluster.collect_wal(self._work / "backlog", self._options.segments)
        tools: list[Tool] = [Pgrecall("", self._work / "pgrecall", self._pgrecall)]
        if self._options.pgbackrest:
            tools += pgbackrest_archivers(self._options.pgbackrest, self._work)
        job = push_wal(cluster, tools, segments, rounds=self._options.rounds, say=self._say)
        shutil.rmtree(self._work / "backlog")
        for tool in tools:
            shutil.rmtree(tool.place, ignore_errors=True)
        return [job]

    def _main_cluster(self) -> Cluster:
        given = self._options.data_dir
        if given:
            cluster = _existing(self._programs, given)
            self._clusters.append(cluster)
            cluster.start()
            return cluster
        cluster = self._new_cluster("main")
        self._note(f"loading scale {self._options.scale}")
        cluster.load(self._options.scale)
        return cluster

    def _small_cluster(self) -> Cluster:
        cluster = self._new_cluster("small")
        self._note(f"creating {self._options.small_tables} tables")
        cluster.load_small_tables(self._options.small_tables)
        return cluster

    def _new_cluster(self, name: str) -> Cluster:
        cluster = Cluster(self._programs, self._work / name, self._work, free_port())
        cluster.create()
        self._clusters.append(cluster)
        cluster.start()
        return cluster

    def _say(self, line: str) -> None:
        self._note(line)

    def _note(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began:6.0f} s] {text}", flush=True)


def _existing(programs: Programs, directory: Path) -> Cluster:
    """A data directory that is there: socket and port as postgresql.conf says."""
    values = {
        name: programs.output(["postgres", "-D", str(directory), "-C", name])
        .split("\n")[-2]
        .strip()
        for name in ("unix_socket_directories", "port")
    }
    place = values["unix_socket_directories"].split(",")[0].strip()
    return Cluster(programs, directory, Path(place), int(values["port"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
