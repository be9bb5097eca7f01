"""What check makes of facts: archive commands, clocks, the archiver."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from pgrecall.check.command_line import ArchiveCommand, read_archive_command
from pgrecall.check.plan import CheckFacts, Expected, can_prove_archiving, is_failing, judge
from pgrecall.check.probes import clock_finding
from pgrecall.model.findings import worst
from pgrecall.postgres.actions import ArchiverFacts
from pgrecall.postgres.facts import ServerFacts, ServerRights
from pgrecall.wal.commands import archive_command

NOW = datetime(2026, 11, 22, 20, 16, 37, tzinfo=UTC)
RIGHT = archive_command(["/opt/pg recall"], "/etc/it's 100%.toml", "shop 'ü'")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ArchiveCommand("none")),
        ("  ", ArchiveCommand("none")),
        ("/bin/true", ArchiveCommand("nothing", program="true")),
        ("exit 0", ArchiveCommand("nothing", program="exit")),
        (
            "pgbackrest --stanza=main archive-push %p",
            ArchiveCommand("other-tool", program="pgbackrest"),
        ),
        (
            "test ! -f /mnt/%f && cp %p /mnt/%f",
            ArchiveCommand("other-tool", program="test"),
        ),
        ("LC_ALL=C rsync -a %p host:/%f", ArchiveCommand("other-tool", program="rsync")),
        ("/usr/local/bin/archive.sh %p", ArchiveCommand("unknown", program="archive.sh")),
        ('"unclosed', ArchiveCommand("unknown", program='"unclosed')),
        (
            "pgrecall wal push %p",
            ArchiveCommand("pgrecall", program="pgrecall"),
        ),
        (
            "pgrecall wal push --server=shop %p --config /x",
            ArchiveCommand("pgrecall", program="pgrecall", server="shop", config="/x"),
        ),
        (
            "pgrecall wal push %p || true",
            ArchiveCommand("pgrecall", program="pgrecall", tail="|| true"),
        ),
        (
            "pgrecall wal push %p; exit 0",
            ArchiveCommand("pgrecall", program="pgrecall", tail="; exit 0"),
        ),
        (
            "env A=1 python -m pgrecall wal push '%p'",
            ArchiveCommand("pgrecall", program="env"),
        ),
        (
            "/shared/pgrecall-client push --socket /s --server shop --fallback /p --config /c %p",
            ArchiveCommand(
                "pgrecall", program="/shared/pgrecall-client", config="/c", server="shop"
            ),
        ),
        (
            "/shared/pgrecall-client push --server shop %p || true",
            ArchiveCommand(
                "pgrecall", program="/shared/pgrecall-client", server="shop", tail="|| true"
            ),
        ),
        (
            RIGHT,
            ArchiveCommand(
                "pgrecall",
                program="/opt/pg recall",
                config="/etc/it's 100%.toml",
                server="shop 'ü'",
            ),
        ),
        (
            archive_command(["/py", "-m", "pgrecall"], "/etc/it's 100%.toml", "shop 'ü'"),
            ArchiveCommand(
                "pgrecall", program="/py", config="/etc/it's 100%.toml", server="shop 'ü'"
            ),
        ),
    ],
)
def test_reading_archive_commands(text: str, expected: ArchiveCommand) -> None:
    found = read_archive_command(text)
    if text == RIGHT:
        assert found.kind == "unknown"  # a program of another name can be anything
    else:
        assert found == expected


def facts(
    *, rights: dict[str, object] | None = None, standbys: int = 0, **server: object
) -> CheckFacts:
    """A healthy PostgreSQL 18, with changes."""
    healthy: dict[str, object] = {
        "version_num": 180006, "version": "18.6", "data_directory": "/d", "config_file": "",
        "hba_file": "", "ident_file": "", "system_identifier": 1, "timeline": 1,
        "is_in_recovery": False, "wal_level": "replica", "archive_mode": "on",
        "archive_command": RIGHT, "archive_library": "", "segment_bytes": 1 << 24,
        "block_bytes": 8192, "relation_segment_blocks": 131072, "has_checksums": True,
        "tablespaces": (), "shared_preload_libraries": (), "collation_versions": {},
        "settings": {}, "pending_restart": (), "configuration_files": (),
    }  # fmt: skip
    role: dict[str, object] = {
        "role": "backup", "is_superuser": False, "can_backup": True, "can_switch_wal": True,
        "can_create_restore_point": True, "can_read_all_settings": True, "can_replicate": False,
    }  # fmt: skip
    return CheckFacts(
        server=ServerFacts(**{**healthy, **server}),  # type: ignore[arg-type]
        rights=ServerRights(**{**role, **(rights or {})}),  # type: ignore[arg-type]
        archiver=ArchiverFacts(0, "", None, 0, "", None),
        can_stop_backup=True,
        full_page_writes=True,
        fsync=True,
        standbys=standbys,
    )


EXPECTED = Expected(server="shop 'ü'", config="/etc/it's 100%.toml", archive_command=RIGHT)


def test_a_healthy_server() -> None:
    found = judge(facts(), EXPECTED)
    assert {finding.severity for finding in found} == {"ok"}
    assert can_prove_archiving(facts())


@pytest.mark.parametrize(
    ("changes", "code", "severity"),
    [
        ({"is_in_recovery": True}, "server-is-standby", "fail"),
        ({"wal_level": "minimal"}, "wal-level", "fail"),
        ({"archive_mode": "off"}, "archive-mode", "fail"),
        ({"archive_library": "basic_archive"}, "archive-library", "fail"),
        ({"archive_command": "archive.sh %p"}, "archive-command", "warn"),
        ({"standbys": 1}, "standby-does-not-archive", "warn"),
        ({"has_checksums": False}, "page-checksums-off", "warn"),
        ({"rights": {"can_backup": False}}, "rights-backup", "fail"),
        ({"rights": {"can_switch_wal": False}}, "rights-switch-wal", "fail"),
    ],
)
def test_one_thing_wrong(changes: dict[str, object], code: str, severity: str) -> None:
    bad = [
        finding
        for finding in judge(facts(**changes), EXPECTED)  # type: ignore[arg-type]
        if finding.severity != "ok"
    ]
    assert [(finding.code, finding.severity) for finding in bad] == [(code, severity)]
    assert bad[0].hint


def test_a_standby_that_archives_itself_is_fine() -> None:
    found = judge(facts(standbys=2, archive_mode="always"), EXPECTED)
    assert worst(found) == "ok"


def test_the_functions_are_named_by_version() -> None:
    lacking = facts(rights={"can_backup": False}, version_num=140013)
    hints = [finding.hint for finding in judge(lacking, EXPECTED) if finding.severity == "fail"]
    assert hints == [
        "GRANT EXECUTE ON FUNCTION pg_catalog.pg_start_backup(text, boolean, boolean), "
        'pg_catalog.pg_stop_backup(boolean, boolean) TO "backup";'
    ]


def test_an_archiver_that_fails() -> None:
    later = NOW + timedelta(seconds=1)
    assert not is_failing(ArchiverFacts(1, "a", NOW, 0, "", None))
    assert not is_failing(ArchiverFacts(1, "b", later, 1, "a", NOW))
    assert is_failing(ArchiverFacts(1, "a", NOW, 1, "b", later))
    assert is_failing(ArchiverFacts(0, "", None, 1, "b", later))


@pytest.mark.parametrize(
    ("seconds", "severity", "words"),
    [
        (0, "ok", "agrees"),
        (4, "ok", "agrees"),
        (-4, "ok", "agrees"),
        (60, "warn", "59 seconds ahead"),
        (-60, "warn", "60 seconds behind"),
        (-3600, "fail", "3600 seconds behind"),
    ],
)
def test_clocks(seconds: int, severity: str, words: str) -> None:
    bounds = (NOW, NOW + timedelta(seconds=1))
    found = clock_finding(NOW + timedelta(seconds=seconds), bounds, "the clock", "main")
    assert found.severity == severity
    assert words in found.message


def test_streaming_alone_is_archiving() -> None:
    found = judge(facts(archive_mode="off"), EXPECTED)
    assert [one.severity for one in found if one.code == "archive-mode"] == ["fail"]
    assert not can_prove_archiving(facts(archive_mode="off"))
    received = msgspec.structs.replace(facts(archive_mode="off"), is_received=True)
    found = judge(received, EXPECTED)
    assert [one.severity for one in found if one.code == "archive-mode"] == ["ok"]
    assert "archive-command" not in {one.code for one in found}
    assert can_prove_archiving(received)


def test_a_server_that_streams() -> None:
    """It needs one right, may be a standby, and may have its own file on its own host."""
    streams = msgspec.structs.replace(EXPECTED, streams=True)
    plain = {"is_superuser": False, "can_backup": False, "can_replicate": True}
    for expected, role, is_in_recovery, codes in (
        (streams, plain, True, set()),
        (streams, {**plain, "can_replicate": False}, False, {"rights-replication"}),
        (EXPECTED, plain, True, {"rights-backup", "server-is-standby"}),
    ):
        found = judge(facts(rights=dict(role), is_in_recovery=is_in_recovery), expected)
        assert {finding.code for finding in found if finding.severity == "fail"} == codes
    other = "pgrecall --config /srv/other.toml wal push %p"
    elsewhere = facts(archive_command=other, rights={"can_replicate": True})
    assert not [one for one in judge(elsewhere, streams) if one.severity == "fail"]
    (failed,) = [one for one in judge(elsewhere, EXPECTED) if one.severity == "fail"]
    assert "uses the configuration /srv/other.toml" in failed.message
