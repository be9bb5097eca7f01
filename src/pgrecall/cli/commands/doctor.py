"""``doctor``: what is wrong, why, and what to type."""

from __future__ import annotations

import sys

import click

from pgrecall.app.diagnosing import DoctorResult, run_doctor
from pgrecall.app.requests import DoctorRequest
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.errors import CheckFailedError


@framed_command(
    "doctor",
    examples=(
        Example("pgrecall doctor", "the only server, its repositories, its history"),
        Example("pgrecall doctor --target-dir /restore", "and a restore that does not come up"),
        Example("pgrecall doctor --json", "for a program; ends with 60 when something fails"),
    ),
)
@click.option(
    "--target-dir",
    "target_dirs",
    multiple=True,
    type=click.Path(),
    help="Look at this data directory, too. Repeatable.",
)
@click.option(
    "--least-free",
    "least_free_percent",
    type=click.FloatRange(0, 100),
    default=10.0,
    metavar="PERCENT",
    help="Call a file system full that has less room. [default: 10]",
)
def command(
    invocation: Invocation, *, target_dirs: tuple[str, ...], least_free_percent: float
) -> int:
    """Name every trouble, with what was seen, the cause, and the commands that mend it.

    Looks at the server, its configuration, archive, slots and disks, at every repository, at
    backups, dumps, drills and the runs of a month; changes nothing. What cannot be looked at is
    said, and the rest is looked at all the same. docs/doctor.md has every code. Ends with 60
    when a diagnosis fails, as check does.
    """
    request = DoctorRequest(target_dirs=target_dirs, least_free_percent=least_free_percent)
    result = run_doctor(invocation.context(), request)
    if invocation.flag("json"):
        invocation.emit(result, "doctor/1")
    else:
        _show(result)
    return CheckFailedError.exit_status if result.result == "fail" else 0


def _show(result: DoctorResult) -> None:
    write = sys.stdout.write
    unseen = [one for one in result.seen if one.problem]
    for one in result.diagnoses:
        subject = f" ({one.subject})" if one.subject else ""
        write(f"{one.severity:<4} {one.code}{subject}\n")
        for line in one.evidence:
            write(f"     seen:  {line}\n")
        write(f"     cause: {one.cause}\n")
        for text in one.commands:
            write(f"     type:  {text}\n")
        if one.advice:
            write(f"     note:  {one.advice}\n")
        write("\n")
    for part in unseen:
        write(f"not looked at: {part.what}: {part.problem}\n")
    looked = len(result.seen) - len(unseen)
    said = "nothing is wrong" if not result.diagnoses else f"{len(result.diagnoses)} diagnosis(es)"
    write(f"server {result.server}: {said}; {looked} of {len(result.seen)} parts were looked at\n")
