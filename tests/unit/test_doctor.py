"""What doctor makes of facts, and that no trouble is declared which nothing provokes."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pgrecall.doctor.diagnose import diagnose
from pgrecall.doctor.facts import DoctorFacts, Hole, Look, Seen
from pgrecall.doctor.troubles import BEHIND_FINDING, TROUBLES
from pgrecall.doctor.words import Words
from pgrecall.model.findings import Finding

ROOT = Path(__file__).resolve().parents[2]
ODD = """it's "odd" $HOME `x` \\ ; %"""


def words(**changes: str) -> Words:
    known = {"server": "main", "role": "postgres", "archive_command": 'push "%p"', **changes}
    return Words(pgrecall=("pgrecall", "--server", ODD), psql=("psql", "-d", ODD), **known)


def facts(**given: Any) -> DoctorFacts:
    return DoctorFacts(words=words(), **given)


def test_every_trouble_is_provoked_by_a_test_on_a_real_server() -> None:
    tests = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests/e2e").glob("test_doctor*.py")
    )
    assert [code for code in TROUBLES if f'"{code}"' not in tests] == []


def test_findings_lead_to_declared_troubles_and_exist() -> None:
    assert set(BEHIND_FINDING.values()) <= TROUBLES.keys()
    sources = "".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "src/pgrecall").rglob("*.py")
        if path.parent.name != "doctor"
    )
    composed = {f"archive-lag-{unit}" for unit in ("seconds", "bytes", "segments")}
    assert [code for code in BEHIND_FINDING if f'"{code}"' not in sources] == sorted(composed)


def test_the_guides_eight_troubles_are_there() -> None:
    assert {trouble.issue for trouble in TROUBLES.values()} == set(range(9))


def test_commands_survive_a_shell() -> None:
    ours = words(data_directory=ODD, pg_ctl="/bin/pg_ctl")
    assert shlex.split(ours.run("drop", ODD)) == ["pgrecall", "--server", ODD, "drop", ODD]
    setting = shlex.split(ours.setting("archive_command", ODD))
    assert setting[:3] == ["psql", "-d", ODD]
    assert setting[4].startswith('ALTER SYSTEM SET "archive_command" =')
    assert shlex.split(ours.control("restart")[0])[-3] == ODD


@pytest.mark.parametrize("owner", ["", "postgres"])
def test_a_setting_is_appended_to_a_directory_with_an_odd_name(owner: str, tmp_path: Path) -> None:
    place = tmp_path / ODD.replace("/", "")
    place.mkdir()
    line = words(owner=owner).append_setting(str(place), "restore_command", 'fetch %f "%p" it\'s')
    line = line.removeprefix("sudo -u postgres ")
    subprocess.run(["/bin/sh", "-c", line], check=True)
    written = (place / "postgresql.auto.conf").read_text()
    assert written == "restore_command = 'fetch %f \"%p\" it''s'\n"


def test_several_looks_at_one_thing_are_one_diagnosis() -> None:
    findings = (
        Finding(severity="warn", code="archiver-failed", message="one"),
        Finding(severity="fail", code="archiver-failing", message="two", subject="0001"),
        Finding(severity="warn", code="archiver-failed", message="one"),
        Finding(severity="ok", code="clock", message="fine"),
    )
    (found,) = diagnose(facts(findings=findings))
    assert (found.code, found.severity, found.evidence) == (
        "archiving-fails", "fail", ("one", "two"),
    )  # fmt: skip


def test_the_gravest_comes_first_and_what_is_unknown_is_told() -> None:
    findings = (
        Finding(severity="warn", code="page-checksums-off", message="no sums"),
        Finding(severity="fail", code="never-heard-of", message="strange", hint="do this"),
    )
    seen = (Seen(what="dumps", problem="the store is away"), Seen(what="disks"))
    found = diagnose(facts(findings=findings, seen=seen))
    assert [one.code for one in found] == ["not-looked-at", "other", "checksums-off"]
    assert found[1].advice == "do this"


def test_that_the_server_is_down_is_said_once() -> None:
    down = Finding(severity="fail", code="postgres-unreachable", message="refused")
    seen = (Seen(what="server", problem="no session"), Seen(what="drills", problem="away"))
    found = diagnose(facts(findings=(down,), seen=seen))
    assert [one.code for one in found] == ["server-unreachable", "not-looked-at"]


def test_a_gap_that_a_backup_bridges_is_a_warning_and_an_expired_one_nothing() -> None:
    def hole(*, expired: bool = False, bridged: bool = False) -> Hole:
        return Hole(
            timeline=1, first="a", last="a", segments=1, explanation="missing",
            is_expired=expired, is_bridged=bridged,
        )  # fmt: skip

    (open_gap,) = diagnose(facts(holes=(hole(),)))
    assert (open_gap.severity, bool(open_gap.commands)) == ("fail", True)
    (bridged,) = diagnose(facts(holes=(hole(bridged=True),)))
    assert (bridged.severity, bool(bridged.commands)) == ("warn", False)
    assert diagnose(facts(holes=(hole(expired=True),))) == []


def test_damage_without_another_repository_asks_for_a_new_backup() -> None:
    look = Look(name="one", damaged=1, damaged_ids=("b-20261122T201637Z-7k3q",))
    (alone,) = diagnose(facts(repositories=(look,)))
    assert alone.commands[0].endswith("backup")
    (healed, *_) = diagnose(facts(repositories=(look, Look(name="two", damaged=0))))
    assert "repair b-20261122T201637Z-7k3q" in healed.commands[0]
