"""What a backup refuses, what it plans, and configuration outside of PGDATA."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pgrecall.backup.external import external_files, streamed_files
from pgrecall.backup.plan import BackupWishes, BaseChoice, choose_base, plan_backup
from pgrecall.errors import (
    DataDirectoryError,
    IdentityError,
    PostgresRightsError,
    UnsupportedServerError,
)
from pgrecall.model.manifest import Completion
from pgrecall.postgres.control import ControlData
from pgrecall.postgres.facts import ServerFacts, ServerRights
from tests.unit.test_catalog import completion

PAGE = 8192
SEGMENT = 1 << 24
FULL = BaseChoice(None, "asked for")


def server(**changes: object) -> ServerFacts:
    fields: dict[str, object] = {
        "version_num": 180006, "version": "18.6", "data_directory": "/pgdata",
        "config_file": "/etc/p/postgresql.conf", "hba_file": "/etc/p/pg_hba.conf",
        "ident_file": "", "system_identifier": 77, "timeline": 1, "is_in_recovery": False,
        "wal_level": "replica", "archive_mode": "on", "archive_command": "x",
        "archive_library": "", "segment_bytes": SEGMENT, "block_bytes": PAGE,
        "relation_segment_blocks": 131072, "has_checksums": True, "tablespaces": (),
        "shared_preload_libraries": (), "collation_versions": {}, "settings": {"port": "5432"},
        "pending_restart": (), "configuration_files": (),
    }  # fmt: skip
    return ServerFacts(**{**fields, **changes})  # type: ignore[arg-type]


def rights(**changes: object) -> ServerRights:
    fields: dict[str, object] = {
        "role": "r", "is_superuser": False, "can_backup": True, "can_switch_wal": False,
        "can_create_restore_point": False, "can_read_all_settings": False,
        "can_replicate": False,
    }  # fmt: skip
    return ServerRights(**{**fields, **changes})  # type: ignore[arg-type]


class Control:
    """What the plan asks of pg_control."""

    def __init__(self, *, system_identifier: int = 77, is_stopped: bool = False) -> None:
        self.system_identifier = system_identifier
        self.is_stopped = is_stopped


def wishes(**changes: object) -> BackupWishes:
    fields: dict[str, object] = {
        "server": "main", "repository": "one", "data_directory": "/pgdata", "checkpoint": "fast",
        "compression": "zstd", "level": 1, "workers": 2, "with_wal": False,
    }  # fmt: skip
    return BackupWishes(**{**fields, **changes})  # type: ignore[arg-type]


def planned(
    facts: ServerFacts, *, control: Control | None = None, role: ServerRights | None = None,
    **changes: bool,
) -> object:  # fmt: skip
    made: ControlData = control or Control()  # type: ignore[assignment]
    return plan_backup(wishes(**changes), facts, role or rights(), made, FULL)


def test_a_plan_says_what_will_be_done() -> None:
    plan = plan_backup(wishes(), server(), rights(), Control(), FULL)  # type: ignore[arg-type]
    assert (plan.kind, plan.source, plan.checks_pages, plan.findings) == ("full", "local", True, ())
    assert len(plan.reasons) == 2
    unchecked = plan_backup(
        wishes(), server(has_checksums=False), rights(), Control(), FULL  # type: ignore[arg-type]
    )  # fmt: skip
    assert [finding.code for finding in unchecked.findings] == ["page-checksums-off"]
    assert not unchecked.checks_pages


def test_a_plan_refuses_with_what_to_do() -> None:
    for facts, error, why in (
        (server(version_num=120022), UnsupportedServerError, "older than 13"),
        (server(is_in_recovery=True), UnsupportedServerError, "in recovery"),
        (server(wal_level="minimal"), UnsupportedServerError, "wal_level=minimal"),
        (server(archive_mode="off"), UnsupportedServerError, "archive_mode=off"),
        (server(system_identifier=78), IdentityError, "the server at port 5432 is 78"),
    ):
        with pytest.raises(error, match=why) as caught:
            planned(facts)
        assert caught.value.hint
    with pytest.raises(UnsupportedServerError, match="wal_level=minimal"):
        planned(server(wal_level="minimal"), with_wal=True, role=rights(can_replicate=True))
    with pytest.raises(PostgresRightsError, match="may not start a backup"):
        planned(server(), role=rights(can_backup=False))
    with pytest.raises(PostgresRightsError, match="may not reserve WAL"):
        planned(server(), with_wal=True)
    with pytest.raises(DataDirectoryError, match="is a copy"):
        planned(server(), control=Control(is_stopped=True))
    planned(server(archive_mode="off"), with_wal=True, role=rights(can_replicate=True))
    planned(server(archive_mode="off"), is_received=True)


def test_a_stream_needs_replication_and_nothing_else() -> None:
    may = rights(can_backup=False, can_replicate=True)
    asked = wishes(source="stream", data_directory="")
    plan = plan_backup(asked, server(), may, None, FULL)
    assert (plan.source, plan.kind, plan.uses_summaries) == ("stream", "full", False)
    assert "the server sends its data directory" in plan.reasons[1]
    standby = plan_backup(asked, server(is_in_recovery=True, archive_mode="off"), may, None, FULL)
    assert "a standby" in standby.reasons[1]
    for facts, role, error, why in (
        (server(), rights(), PostgresRightsError, "may not stream a backup"),
        (server(archive_mode="off"), may, UnsupportedServerError, "archive_mode=off"),
        (server(wal_level="minimal"), may, UnsupportedServerError, "wal_level=minimal"),
    ):
        with pytest.raises(error, match=why) as caught:
            plan_backup(asked, facts, role, None, FULL)
        assert caught.value.hint
    summaries = server(settings={"summarize_wal": "on"})
    base = BaseChoice(completion("b-20260101T000000Z-aaaa"), "what has changed")
    assert not plan_backup(asked, summaries, may, None, base).uses_summaries


def test_configuration_on_another_host() -> None:
    """Asked for by SQL; what the role may not read is named, what lies inside is sent anyway."""

    def read(path: str, limit: int) -> bytes | None:
        if path.endswith("hba.conf"):
            raise PostgresRightsError("it may not")
        return {"/etc/p/large.conf": b"x" * limit, "/etc/p/postgresql.conf": b"a = 1"}.get(path)

    asked = server(configuration_files=("/etc/p/large.conf", "/pgdata/in.conf", "/etc/p/gone"))
    files, findings = streamed_files(asked, read)
    assert [(one.role, one.path, one.content) for one in files] == [
        ("config", "/etc/p/postgresql.conf", b"a = 1")
    ]
    assert [(one.subject, one.code) for one in findings] == [
        (path, "configuration-left-out")
        for path in ("/etc/p/large.conf", "/etc/p/gone", "/etc/p/pg_hba.conf")
    ]


def test_configuration_outside_of_pgdata(tmp_path: Path) -> None:
    pgdata, etc = tmp_path / "pgdata", tmp_path / "etc"
    pgdata.mkdir()
    etc.mkdir()
    (etc / "postgresql.conf").write_text("port = 1\n")
    (etc / "extra.conf").write_bytes(b"x" * ((4 << 20) + 1))
    (pgdata / "pg_hba.conf").symlink_to(etc / "postgresql.conf")
    (tmp_path / "link").symlink_to(pgdata)
    facts = server(
        data_directory=str(tmp_path / "link"),
        config_file=str(etc / "postgresql.conf"),
        hba_file=str(tmp_path / "link" / "pg_hba.conf"),
        ident_file=str(etc / "missing.conf"),
        configuration_files=(str(etc / "postgresql.conf"), str(etc / "extra.conf")),
    )
    files, findings = external_files(facts, str(pgdata))
    assert [(file.role, file.path, file.content) for file in files] == [
        ("config", str(etc / "postgresql.conf"), b"port = 1\n")
    ]
    assert {(finding.subject, finding.code) for finding in findings} == {
        (str(etc / "missing.conf"), "configuration-left-out"),
        (str(etc / "extra.conf"), "configuration-left-out"),
    }


NOW = datetime(2026, 11, 27, tzinfo=UTC)


def backup(kind: str, days_ago: float, generation: int = 1) -> Completion:
    return completion(
        f"b-20261101T000000Z-{int(days_ago):04d}",
        kind=kind,
        generation=generation,
        stopped_at=NOW - timedelta(days=days_ago),
    )


def chosen(*backups: Completion, wants_full: bool = False, full_days: int = 7) -> BaseChoice:
    return choose_base(backups, 1, NOW, wants_full=wants_full, full_days=full_days)


def test_a_backup_goes_on_from_the_newest_of_its_system() -> None:
    full, first, second = backup("full", 3), backup("incremental", 2), backup("incremental", 1)
    assert chosen(full, first, second).base is second
    assert chosen(full, second, backup("full", 0.5, generation=2)).base is second
    assert chosen(full).base is full


def test_a_full_backup_and_why() -> None:
    full, newest = backup("full", 7), backup("incremental", 1)
    for choice, why in (
        (chosen(), "no backup of this system yet"),
        (chosen(backup("full", 1, generation=2)), "only of an earlier one"),
        (chosen(backup("full", 1), wants_full=True), "asked for"),
        (chosen(full, newest), "7 days old"),
        (chosen(newest), "7 days old"),  # the full one is gone, its packs are not
    ):
        assert choice.base is None
        assert why in choice.reason
    assert chosen(full, newest, full_days=8).base is newest
    assert chosen(full, newest, full_days=0).base is newest
