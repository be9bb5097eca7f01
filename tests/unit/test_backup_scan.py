"""Which files of PGDATA belong to a backup: the selection, and the walk."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgrecall.backup.scan import scan_data_directory
from pgrecall.backup.selection import (
    is_excluded_file,
    is_temporary_relation,
    is_unlogged_content,
    unlogged_nodes,
)
from pgrecall.errors import DataDirectoryError
from pgrecall.model.relation_files import is_relation_directory, relation_segment_number


@pytest.mark.parametrize(
    "name",
    [
        *(b"postmaster.pid", b"postmaster.opts", b"backup_label", b"tablespace_map"),
        *(b"backup_manifest", b"postgresql.auto.conf.tmp", b"current_logfiles.tmp"),
        *(b"recovery.signal", b"standby.signal", b"pgrecall_copy.json"),
    ],
)
def test_files_of_the_process_are_left_out_at_the_top(name: bytes) -> None:
    assert is_excluded_file(b"", name)
    assert not is_excluded_file(b"somewhere", name)
    assert not is_excluded_file(b"", name + b".old")


def test_temporary_files_and_caches_are_left_out_anywhere() -> None:
    for directory in (b"", b"base", b"base/5", b"pg_tblspc/1/PG_18_1/5"):
        for name in (b"pg_internal.init", b"pg_internal.init.123", b"pgsql_tmp", b"pgsql_tmp1.0"):
            assert is_excluded_file(directory, name)
    for name in (b"PG_VERSION", b"postgresql.auto.conf", b"pg_filenode.map", b"1259"):
        assert not is_excluded_file(b"", name)


def test_relation_files() -> None:
    for directory in (b"global", b"base/1", b"pg_tblspc/16385/PG_18_202506291/5"):
        assert is_relation_directory(directory)
        assert relation_segment_number(directory, b"16384") == 0
        assert relation_segment_number(directory, b"16384_vm.2") == 2
        assert relation_segment_number(directory, b"16384.131") == 131
        for name in (b"pg_filenode.map", b"16384.x", b"16384_foo", b"t1_16384", b"16384\n"):
            assert relation_segment_number(directory, name) is None
    for directory in (
        b"",
        b"base",
        b"base/x",
        b"pg_xact",
        b"pg_tblspc/1",
        b"base/1\n",
        b"base/1/2",
    ):
        assert not is_relation_directory(directory)
        assert relation_segment_number(directory, b"16384") is None


def test_unlogged_and_temporary_relations() -> None:
    names = [b"10", b"10_init", b"10_fsm", b"10.1", b"11", b"11_vm", b"t3_12", b"12_init.1"]
    unlogged = unlogged_nodes(names)
    assert unlogged == {b"10", b"12"}
    left_out = [name for name in names if is_unlogged_content(name, unlogged)]
    assert left_out == [b"10", b"10_fsm", b"10.1"]
    assert [name for name in names if is_temporary_relation(name)] == [b"t3_12"]
    for name in (b"t3_12_fsm", b"t3_12.4", b"t10_12_vm.1"):
        assert is_temporary_relation(name)
    for name in (b"t_12", b"t3_", b"t3_12x", b"3_12"):
        assert not is_temporary_relation(name)


def scanned(root: Path) -> tuple[dict[bytes, str], set[tuple[str, str]]]:
    scan = scan_data_directory(str(root), lambda name: name == b"PG_18_1", has_summaries=True)
    table = scan.table
    found = {table.path(n): chr(kind) for n, kind in enumerate(table.kinds)}
    assert len(found) == len(table)
    assert list(found) == sorted(found, key=lambda path: path.split(b"/"))
    return found, {(finding.subject, finding.code) for finding in scan.findings}


def test_directories_that_the_server_fills_itself_are_empty(tmp_path: Path) -> None:
    emptied = ("pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots",
               "pg_stat_tmp", "pg_subtrans")  # fmt: skip
    for name in (*emptied, "pg_wal", "pg_wal/archive_status", "base", "base/pgsql_tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    found, findings = scanned(tmp_path)
    assert findings == set()
    assert found == {
        **{name.encode(): "d" for name in emptied},
        b"base": "d",
        b"base/file": "f",
        b"pg_wal": "d",
        b"pg_wal/archive_status": "d",
        b"pg_wal/summaries": "d",
    }


def test_links_that_lead_around(tmp_path: Path) -> None:
    root, outside = tmp_path / "pgdata", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "file").write_text("x")
    (outside / "to_itself").symlink_to(outside)
    (outside / "to_above_pgdata").symlink_to(tmp_path)
    (root / "out").symlink_to(outside)
    (root / "pg_stat_tmp").symlink_to(outside)
    found, findings = scanned(root)
    assert found[b"out/file"] == "f"
    assert found[b"pg_stat_tmp"] == "d"
    assert not any(path.startswith(b"pg_stat_tmp/") for path in found)
    assert ("out/to_itself", "link-loop") in findings
    assert len(found) < 20


def test_a_tablespace_link_to_nowhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pg_tblspc").mkdir()
    (tmp_path / "pg_tblspc" / "16385").symlink_to(tmp_path / "missing")
    with pytest.raises(DataDirectoryError, match="pg_tblspc/16385 leads nowhere"):
        scanned(tmp_path)
    with pytest.raises(DataDirectoryError, match="there is no directory"):
        scanned(tmp_path / "missing")
