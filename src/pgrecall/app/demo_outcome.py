"""What came of the demonstration: proofs, sizes, times, the loss, and what is kept."""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pgrecall.app.demo_place import PORT, SUPERUSER, Place, Programs
from pgrecall.app.demo_report import DemoReport, Kept, Loss, Proof, Sizes, Times
from pgrecall.app.demo_workload import Accident, Known, compare
from pgrecall.app.starting import Started
from pgrecall.model.manifest import Completion
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.system.unprivileged import RUNTIME_VARIABLE

AFTER_ACCIDENT = 500
"""Transactions that the server commits after the accident, which the copy must not have."""


class Events(NamedTuple):
    """What happened, step by step."""

    backup: Completion
    known: Known
    accident: Accident
    started: Started
    times: Times


def report_of(
    events: Events, found: Known | None, goes_on: int, archive: WalArchive, version: str
) -> DemoReport:
    """Compare and add up. ``found``: None when the table is missing in the restored server.

    ``goes_on`` counts the transfers of the server that had the accident; ``archive`` is listed.
    """
    known, accident, started = events.known, events.accident, events.started
    proofs = compare(known, found)
    proofs.append(
        Proof(
            "the server: transfers and later ones",
            f"{known.history + AFTER_ACCIDENT:,}",
            f"{goes_on:,}",
        )
    )
    timelines = ", ".join(map(str, archive.timelines()))
    proofs.append(Proof("archive: timelines, none of a copy", "1", timelines))
    totals = events.backup.totals
    segments = list(archive.segments(1))
    last = started.last_commit_at
    return DemoReport(
        is_proven=all(proof.is_proven for proof in proofs),
        version=version,
        accident_xid=accident.xid,
        stopped=started.stopped,
        proofs=tuple(proofs),
        sizes=Sizes(
            backup_files=totals.files,
            backup_raw_bytes=totals.raw_bytes,
            backup_stored_bytes=totals.stored_bytes,
            backup_seconds=events.backup.duration_seconds,
            wal_segments=len(segments),
            wal_raw_bytes=len(segments) * archive.segment_bytes,
            wal_stored_bytes=sum(segment.stored_bytes for segment in segments),
        ),
        times=events.times,
        loss=Loss(
            rows=_lost_rows(known, found),
            last_commit_at=last,
            accident_at=accident.at,
            margin_seconds=round((accident.at - last).total_seconds(), 3) if last else 0.0,
        ),
    )


def what_is_kept(
    place: Place, programs: Programs, started: Started, environment: Mapping[str, str]
) -> Kept:
    """Where it is, and the commands to look at it and to end it."""
    tools = programs.directory
    # As root: pg_ctl refuses it, and the programs themselves were copied for an ordinary user.
    runtime = environment.get(RUNTIME_VARIABLE, "")
    as_user = ["runuser", "-u", pwd.getpwuid(os.geteuid()).pw_name, "--"] if runtime else []
    directories = [str(place.directory), *([runtime] if runtime else [])]
    return Kept(
        directory=str(place.directory),
        connect_to_restored=_psql(tools, started.socket_directory, started.port),
        connect_to_server=_psql(tools, str(place.directory), PORT),
        stop=tuple(
            shlex.join([*as_user, str(tools / "pg_ctl"), "stop", "-D", str(pgdata)])
            for pgdata in (place.restored, place.pgdata)
        ),
        remove=shlex.join(["rm", "-rf", *directories]),
    )


def _psql(tools: Path, host: str, port: int) -> str:
    program = tools / "psql"
    name = str(program) if program.is_file() else "psql"
    return shlex.join([name, "-h", host, "-p", str(port), "-U", SUPERUSER, "postgres"])


def _lost_rows(known: Known, found: Known | None) -> int:
    if found is None:
        return known.orders + known.history
    return (known.orders - found.orders) + (known.history - found.history)
