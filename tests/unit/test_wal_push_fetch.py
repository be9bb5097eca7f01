"""Push and fetch against built WAL and real directories: what is accepted, refused, and why."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import pytest

from pgrecall.errors import (
    CorruptObjectError,
    DataDirectoryError,
    DestinationError,
    IdentityError,
    NotOwnerError,
    PgrecallError,
    SettingsError,
    StoreError,
    WalConflictError,
    WalFormatError,
)
from pgrecall.model.wal_files import history_name, segment_name
from pgrecall.repository.identity import COPY_MARKER, System, add_generation, add_owner
from pgrecall.wal import source as source_module
from pgrecall.wal.push import ALREADY_STORED, CREATED, push_file
from tests.support.wal_builder import RM_TABLESPACE, WalBuilder
from tests.support.wal_scene import NOW, SYSTEM, Scene, build_segments

HISTORY_2 = b"1\t0/3080000\tno recovery target specified\n"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_every_kind_of_file_comes_back(scene: Scene) -> None:
    (name, content), (second, other) = build_segments(2).items()
    files = {
        name: content,
        f"{second}.partial": other,
        f"{name}.00000028.backup": b"START WAL LOCATION: 0/3000028\nLABEL: \xfc\n",
        history_name(2): HISTORY_2,
    }
    for file, expected in files.items():
        result = scene.push_new(file, expected)
        assert (result.name, result.outcome, result.raw_bytes) == (file, CREATED, len(expected))
        assert result.warnings == []
        assert scene.push_new(file, expected).outcome == ALREADY_STORED
    for file, expected in files.items():
        assert scene.fetched(file) == expected
    assert sorted(os.listdir(scene.pgdata / "pg_wal")) == sorted([*files, "RECOVERYXLOG"])


@pytest.mark.parametrize("segment_bytes", [1 << 20, 16 << 20, 128 << 20])
def test_segments_of_any_size(tmp_path: Path, segment_bytes: int) -> None:
    scene = Scene(tmp_path, segment_bytes=segment_bytes)
    ((name, content),) = build_segments(1, segment_bytes=segment_bytes).items()
    result = scene.push_new(name, content)
    assert result.stored_bytes < segment_bytes
    assert scene.fetched(name) == content
    index = scene.archive().index(name)
    assert index.restore_points[0].name == "before"
    assert index.stopped_at == result.stopped_at


@pytest.mark.parametrize("compression", ["zstd", "lz4", "none"])
def test_compressions_mix(scene: Scene, compression: str) -> None:
    ((name, content),) = build_segments(1).items()
    scene.settings.wal = scene.settings.wal.replace(compression=compression, level=19)
    scene.push_new(name, content)
    assert scene.fetched(name) == content
    scene.settings.wal = scene.settings.wal.replace(compression="zstd", level=3)
    assert scene.push_new(name, content).outcome == ALREADY_STORED


def test_a_damaged_tail_is_archived_and_noted(scene: Scene) -> None:
    ((name, content),) = build_segments(1).items()
    garbage = content[:500_000] + os.urandom(len(content) - 500_000)
    assert scene.push_new(name, garbage).stopped_at == "invalid"
    assert scene.fetched(name) == garbage


def test_other_content_is_refused_and_explained(scene: Scene) -> None:
    ((name, content),) = build_segments(1).items()
    ((_, other),) = build_segments(1, salt=1).items()
    scene.push_new(name, content)
    before = scene.object_path(name).read_bytes()
    with pytest.raises(WalConflictError, match=r"pushed at 20.*the original server") as caught:
        scene.push_new(name, other)
    assert "archive_mode = off" in caught.value.hint
    assert scene.object_path(name).read_bytes() == before
    with pytest.raises(WalConflictError):
        scene.push_new(history_name(2), HISTORY_2)
        scene.push_new(history_name(2), HISTORY_2.replace(b"3080000", b"3090000"))


def refused(scene: Scene, name: str, content: bytes, kind: type[PgrecallError], why: str) -> None:
    with pytest.raises(kind, match=why):
        scene.push_new(name, content)
    assert not scene.object_path(name).exists()


def test_what_is_no_wal_is_refused(scene: Scene) -> None:
    ((name, content),) = build_segments(1).items()
    refused(scene, name, b"", WalFormatError, "40 bytes")
    refused(scene, name, content[:-1], WalFormatError, "1048575 bytes")
    refused(scene, name, content + b"\0", WalFormatError, "1048577 bytes")
    refused(scene, name + ".partial", content[: 1 << 19], WalFormatError, "bytes")
    refused(scene, name, bytes(1 << 20), WalFormatError, "no WAL segment")
    following = f"{name[:-1]}4"
    refused(
        scene, following, content, IdentityError, "begins at LSN 0/300000; its name says 0/400000"
    )
    refused(scene, history_name(3), b"", WalFormatError, "no ancestor")
    refused(scene, history_name(3), b"nonsense\n", WalFormatError, "does not parse")
    refused(scene, f"{name}.00000028.backup", bytes(2 << 20), WalFormatError, "few hundred")
    with pytest.raises(WalFormatError, match="name of a WAL file"):
        scene.push_new("postgresql.conf", b"")
    with pytest.raises(DataDirectoryError, match="cannot read"):
        scene.push(scene.pgdata / "pg_wal" / following.replace("4", "5"))
    (scene.pgdata / "pg_wal" / "00000001000000000000000A").mkdir()
    with pytest.raises(WalFormatError, match="regular"):
        scene.push(scene.pgdata / "pg_wal" / "00000001000000000000000A")


def test_another_servers_wal_is_refused(scene: Scene) -> None:
    ((name, content),) = build_segments(1, system=SYSTEM + 1).items()
    # A foreign segment in our pg_wal, and a foreign server with our configuration.
    refused(scene, name, content, IdentityError, "has system identifier 7000000000000000002")
    foreign = scene.make_pgdata("foreign", SYSTEM + 1)
    for file, data in ((name, content), (history_name(2), HISTORY_2)):
        path = scene.write(file, data, foreign)
        with pytest.raises(IdentityError, match="system identifier") as caught:
            scene.push(path)
        assert "server upgrade" in caught.value.hint
        assert not scene.object_path(file).exists()
    # Without a control file nothing tells whose a history file is.
    (foreign / "global" / "pg_control").unlink()
    with pytest.raises(DataDirectoryError, match="cannot be told"):
        scene.push(foreign / "pg_wal" / history_name(2))
    with pytest.raises(IdentityError, match="cannot be told"):
        push_file(
            scene.settings,
            scene.server,
            str(foreign / "pg_wal" / history_name(2)),
            pgdata=str(foreign),
            environment={},
        )


def test_another_segment_size_is_refused(scene: Scene) -> None:
    ((name, content),) = build_segments(1, segment_bytes=2 << 20).items()
    refused(scene, name, content, IdentityError, "segment size")
    (scene.pgdata / "global" / "pg_control").unlink()
    path = scene.write(name, content)
    with pytest.raises(IdentityError, match="2097152 bytes") as caught:
        push_file(scene.settings, scene.server, str(path), pgdata=str(scene.pgdata), environment={})
    assert "server upgrade" in caught.value.hint


def test_the_first_segment_after_a_promotion(scene: Scene) -> None:
    """Fact 1: it begins on the ancestor's timeline; the history file is what allows that."""
    ((name, content),) = build_segments(1, timeline=1).items()
    child = "00000002" + name[8:]
    refused(scene, child, content, IdentityError, "no history file here or in the archive")
    history = scene.write(history_name(2), HISTORY_2)
    assert scene.push_new(child, content).outcome == CREATED
    with pytest.raises(IdentityError, match="is not in the archive"):
        scene.fetched(child)
    scene.push(history)
    history.unlink()
    assert scene.fetched(child) == content
    ((_, stranger),) = build_segments(1, timeline=3).items()
    refused(scene, "00000002000000000000000A", stranger, IdentityError, "begins at LSN")
    other = Scene(scene.path / "other")
    other.push_new(history_name(2), HISTORY_2)
    refused(other, child, stranger, IdentityError, "no such ancestor")
    # And with the history in the archive only.
    (other.pgdata / "pg_wal" / history_name(2)).unlink()
    assert other.push_new(child, content).outcome == CREATED


def test_a_segment_of_another_branch_is_not_delivered(scene: Scene) -> None:
    ((name, content),) = build_segments(1, timeline=2).items()
    child = "00000003" + name[8:]
    history = scene.write(history_name(3), b"1\t0/2000000\tx\n2\t0/3080000\tx\n")
    assert scene.push_new(child, content).outcome == CREATED
    history.write_bytes(b"1\t0/3080000\tanother branch\n")
    scene.push(history)
    with pytest.raises(IdentityError, match="no ancestor of 3"):
        scene.fetch(child)
    assert not (scene.pgdata / "pg_wal" / "RECOVERYXLOG").exists()


def test_a_restored_copy_may_not_write(scene: Scene) -> None:
    """Fact 2, with production's configuration, which names production's data directory."""
    ((name, content),) = build_segments(1).items()
    copy = scene.make_pgdata("copy")
    scene.mark_copy(copy, "x-1")
    path = scene.write(name, content, copy)
    with pytest.raises(NotOwnerError, match="x-1"):
        scene.push(path)
    with pytest.raises(NotOwnerError, match="x-1"):
        scene.push(scene.write(history_name(2), HISTORY_2, copy))
    assert not scene.object_path(name).exists()
    add_owner(scene.store(), "main", restore_id="x-1", timeline=2, now=NOW)
    assert scene.push(path).outcome == CREATED
    with pytest.raises(NotOwnerError, match="taken over"):
        scene.push_new(name, content)


def test_relative_paths_as_postgresql_passes_them(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((name, content),) = build_segments(1).items()
    copy = scene.make_pgdata("copy")
    scene.mark_copy(copy, "x-1")
    scene.write(name, content, copy)
    monkeypatch.chdir(copy)
    with pytest.raises(NotOwnerError):
        scene.push(Path("pg_wal") / name)
    scene.write(name, content)
    monkeypatch.chdir(scene.pgdata)
    assert scene.push(Path("pg_wal") / name).outcome == CREATED
    assert scene.fetch(name, Path("pg_wal/RECOVERYXLOG")) is not None
    assert (scene.pgdata / "pg_wal/RECOVERYXLOG").read_bytes() == content


def test_the_old_generation_still_takes_its_own_wal(scene: Scene) -> None:
    ((name, content),) = build_segments(1).items()
    add_generation(scene.store(), "main", System(SYSTEM + 1, 19, 1 << 20, 8192), NOW)
    assert scene.push_new(name, content).outcome == CREATED
    upgraded = scene.make_pgdata("upgraded", SYSTEM + 1)
    ((_, new),) = build_segments(1, system=SYSTEM + 1).items()
    assert scene.push(scene.write(name, new, upgraded)).outcome == CREATED
    assert scene.fetched(name) == content
    assert scene.fetch(name, upgraded / "pg_wal" / "RECOVERYXLOG") is not None
    assert (upgraded / "pg_wal" / "RECOVERYXLOG").read_bytes() == new
    assert scene.fetch(name, scene.path / "by-hand") is not None  # no PGDATA: the newest
    assert (scene.path / "by-hand").read_bytes() == new


# --- several repositories ------------------------------------------------------------


def test_required_repositories_must_all_have_it(tmp_path: Path) -> None:
    scene = Scene(tmp_path, roles=("required", "required"))
    ((name, content),) = build_segments(1).items()
    shutil.move(scene.path / "two", scene.path / "away")
    with pytest.raises(StoreError):
        scene.push_new(name, content)
    assert scene.object_path(name).exists()
    shutil.move(scene.path / "away", scene.path / "two")
    result = scene.push_new(name, content)
    assert [outcome.status for outcome in result.outcomes] == [ALREADY_STORED, CREATED]


def test_best_effort_may_miss_it_and_that_is_said(tmp_path: Path) -> None:
    scene = Scene(tmp_path, roles=("best-effort", "required"))
    ((name, content),) = build_segments(1).items()
    shutil.rmtree(scene.path / "one")
    result = scene.push_new(name, content)
    assert len(result.warnings) == 1
    assert "'one'" in result.warnings[0]
    assert not (scene.path / "one").exists()
    assert scene.fetched(name) == content


def test_without_a_required_repository_nothing_is_promised(tmp_path: Path) -> None:
    scene = Scene(tmp_path, roles=("best-effort",))
    ((name, content),) = build_segments(1).items()
    with pytest.raises(SettingsError, match="required"):
        scene.push_new(name, content)


def test_absent_means_absent_everywhere(tmp_path: Path) -> None:
    """Fact 6 and invariant 13."""
    scene = Scene(tmp_path, roles=("required", "best-effort"))
    ((name, content),) = build_segments(1).items()
    assert scene.fetch(name) is None
    shutil.move(scene.path / "two", scene.path / "away")
    with pytest.raises(StoreError):
        scene.fetch(name)
    (scene.path / "two").mkdir()  # a mount point without its mount
    with pytest.raises(PgrecallError) as caught:
        scene.fetch(name)
    assert caught.value.exit_status != 64
    (scene.path / "two").rmdir()
    shutil.move(scene.path / "away", scene.path / "two")
    scene.push_new(name, content)
    shutil.rmtree(scene.path / "one")
    result = scene.fetch(name)
    assert result is not None
    assert (result.repository, len(result.warnings)) == ("two", 1)
    assert scene.fetched(name) == content


def test_a_server_that_a_repository_does_not_know_is_not_absence(scene: Scene) -> None:
    shutil.rmtree(scene.path / "one" / "servers")
    with pytest.raises(IdentityError, match="does not know"):
        scene.fetch("000000010000000000000003")
    with pytest.raises(IdentityError, match="does not know"):
        scene.fetch("000000010000000000000003", scene.path / "by-hand")


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)


@pytest.mark.parametrize("offset", [0, 10, 40, 2000, -2000, -200, -100, -1])
def test_damage_is_passed_over_and_never_delivered(tmp_path: Path, offset: int) -> None:
    scene = Scene(tmp_path, roles=("required", "required"))
    ((name, content),) = build_segments(1).items()
    scene.settings.wal = scene.settings.wal.replace(compression="none")
    scene.push_new(name, content)
    flip(scene.object_path(name, "one"), offset)
    result = scene.fetch(name)
    assert result is not None
    if offset not in (-2000, -200):  # the index is not read to deliver a segment
        assert result.repository == "two"
        assert "damaged" in result.warnings[0]
    assert scene.fetched(name) == content
    target = scene.pgdata / "pg_wal" / "RECOVERYXLOG"
    target.write_bytes(b"before")
    flip(scene.object_path(name, "one"), 3000)
    flip(scene.object_path(name, "two"), 3000)
    with pytest.raises(CorruptObjectError, match="also"):
        scene.fetch(name)
    assert target.read_bytes() == b"before"
    assert sorted(os.listdir(target.parent)) == sorted([name, "RECOVERYXLOG"])


def test_a_damaged_object_under_the_name_is_not_taken_for_ours(scene: Scene) -> None:
    ((name, content),) = build_segments(1).items()
    scene.push_new(name, content)
    flip(scene.object_path(name), 40)
    with pytest.raises(CorruptObjectError, match="was not replaced") as caught:
        scene.push_new(name, content)
    assert "move" in caught.value.hint


def test_an_object_that_was_moved_is_refused(scene: Scene) -> None:
    names = list(build_segments(2).items())
    for name, content in names:
        scene.push_new(name, content)
    shutil.copy(scene.object_path(names[0][0]), scene.object_path(names[1][0]))
    with pytest.raises(IdentityError, match="has name"):
        scene.fetch(names[1][0])
    with pytest.raises(CorruptObjectError):
        scene.archive().read(names[1][0])
    with pytest.raises(CorruptObjectError):
        scene.archive().index(names[1][0])


def test_a_destination_that_cannot_be_written(scene: Scene) -> None:
    ((name, content),) = build_segments(1).items()
    scene.push_new(name, content)
    with pytest.raises(DestinationError, match="cannot write"):
        scene.fetch(name, scene.path / "absent" / "file")
    with pytest.raises(WalFormatError):
        scene.fetch("../../etc/passwd")


def test_large_segments_are_mapped(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "_LARGEST_READ", 1 << 19)
    ((name, content),) = build_segments(1).items()
    assert scene.push_new(name, content).outcome == CREATED
    assert scene.fetched(name) == content


def test_a_copy_does_not_replay_a_tablespace_into_a_directory_in_use(tmp_path: Path) -> None:
    """It arrived after the plan; production's directory of that name is not the copy's."""
    scene = Scene(tmp_path)
    used, empty = tmp_path / "used", tmp_path / "empty"
    empty.mkdir()
    used.mkdir()
    (used / "PG_18_202506291").mkdir()
    builder = WalBuilder(start=3 << 20)
    for oid, place in ((16400, empty), (16401, used), (16402, tmp_path / "absent")):
        data = struct.pack("=I", oid) + os.fsencode(place) + b"\0"
        builder.add(RM_TABLESPACE, 0x00, data)
    builder.fill_to((3 << 20) + 500_000)
    (content,) = builder.segments()
    name = segment_name(1, 3 << 20, 1 << 20)
    scene.push_new(name, content)
    assert scene.fetched(name) == content  # the original server may have it
    scene.mark_copy(scene.pgdata, "x-20261122T201637Z-7k3q")
    (scene.pgdata / "pg_wal" / "RECOVERYXLOG").unlink()
    with pytest.raises(DestinationError, match="used") as caught:
        scene.fetch(name)
    assert "--exclusive" in caught.value.hint
    assert not (scene.pgdata / "pg_wal" / "RECOVERYXLOG").exists()
    marker = {"restore_id": "x-20261122T201637Z-7k3q", "planned_to": "0/380000"}
    (scene.pgdata / COPY_MARKER).write_text(json.dumps(marker))
    assert scene.fetched(name) == content  # the plan has seen it, and stops before it
    scene.mark_copy(scene.pgdata, "x-20261122T201637Z-7k3q")
    links = scene.pgdata / "pg_tblspc"
    links.mkdir()
    (links / "16401").symlink_to(used)  # replayed once already: the directory is its own
    assert scene.fetched(name) == content


@pytest.mark.parametrize("before", [8, 40, 120])
def test_a_tablespace_may_be_made_across_the_end_of_the_plan(tmp_path: Path, before: int) -> None:
    """Its record begins in the last segment that the plan saw, and ends in the next."""
    scene = Scene(tmp_path)
    used = tmp_path / "used" / ("x" * 60)
    (used / "PG_18_202506291").mkdir(parents=True)
    start, size = 3 << 20, 1 << 20
    builder = WalBuilder(start=start)
    builder.fill_to(start + size - before)
    data = struct.pack("=I", 16400) + os.fsencode(used) + b"\0"
    builder.add(RM_TABLESPACE, 0x00, data)
    builder.fill_to(start + size + 500_000)
    names = [segment_name(1, start + number * size, size) for number in range(2)]
    for name, content in zip(names, builder.segments(), strict=True):
        scene.push_new(name, content)
    marker = {"restore_id": "x-20261122T201637Z-7k3q", "planned_to": f"0/{start + size:X}"}
    (scene.pgdata / COPY_MARKER).write_text(json.dumps(marker))
    scene.fetch(names[0])
    with pytest.raises(DestinationError, match="creates a tablespace"):
        scene.fetch(names[1])
    shutil.rmtree(used)
    scene.fetch(names[1])
