"""Keys of the repository: what they look like, and that they come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgrecall.errors import PgrecallError, RepositoryError, UsageError
from pgrecall.model.wal_files import WalFile
from pgrecall.repository import layout

KEY_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=%+~")

names = st.text(min_size=1, max_size=30).filter(
    lambda text: text.encode("utf-8", "ignore").decode() == text
)
timelines = st.integers(1, 2**32 - 1)
parts = st.integers(0, 4095)


def wal_files() -> st.SearchStrategy[WalFile]:
    segment = st.builds(
        lambda timeline, log, part: f"{timeline:08X}{log:08X}{part:08X}",
        timelines,
        st.integers(0, 2**32 - 1),
        parts,
    )
    return st.one_of(
        segment,
        segment.map(lambda name: name + ".partial"),
        st.builds(lambda name, at: f"{name}.{at:08X}.backup", segment, parts),
        timelines.map(lambda timeline: f"{timeline:08X}.history"),
    ).map(WalFile)


def is_valid_key(key: str) -> bool:
    """As the contract of a store asks."""
    return all(
        part and not part.startswith(".") and KEY_CHARACTERS.issuperset(part)
        for part in key.split("/")
    )


@given(names)
def test_server_names_come_back(name: str) -> None:
    encoded = layout.encode_server(name)
    assert layout.decode_server(encoded) == name
    assert is_valid_key(encoded)


@given(st.text(max_size=12))
def test_a_part_decodes_to_a_name_that_encodes_to_it_or_not_at_all(part: str) -> None:
    try:
        name = layout.decode_server(part)
    except RepositoryError:
        return
    assert layout.encode_server(name) == part


def test_how_server_names_look() -> None:
    assert layout.encode_server("main-1_b") == "main-1_b"
    assert layout.encode_server(".hidden") == "%2Ehidden"
    assert layout.encode_server("a b/ü%") == "a%20b%2F%C3%BC%25"
    for bad in ("a b", "%2e", "%41", "%", "%4", "%FF", "", "a.b"):
        with pytest.raises(RepositoryError):
            layout.decode_server(bad)
    for bad in ("", "\udc80"):
        with pytest.raises(UsageError):
            layout.encode_server(bad)


@given(names, st.integers(1, 12000), wal_files())
def test_wal_keys_come_back(server: str, generation: int, file: WalFile) -> None:
    key = layout.wal_key(server, generation, file)
    assert is_valid_key(key)
    assert layout.parse_wal_key(key) == (server, generation, file)
    assert key.startswith(layout.wal_prefix(server, generation, file.timeline))


def test_how_wal_keys_look() -> None:
    base = "servers/main/wal/0001/0000000A/"
    for name, key in {
        "0000000A0000000B0000000C": f"{base}0000000B/0000000A0000000B0000000C",
        "0000000A0000000B0000000C.partial": f"{base}0000000B/0000000A0000000B0000000C.partial",
        "0000000A0000000B0000000C.00000028.backup": (
            f"{base}0000000B/0000000A0000000B0000000C.00000028.backup"
        ),
        "0000000A.history": f"{base}0000000A.history",
    }.items():
        assert layout.wal_key("main", 1, WalFile(name)) == key
    for bad in (
        "servers/main/wal/0001/0000000A/0000000C/0000000A0000000B0000000C",
        "servers/main/wal/1/0000000A/0000000A.history",
        "servers/main/wal/0001/0000000A/0000000A.history/x",
        "servers/main/wal/0001/0000000A/nonsense",
        "servers/main/backups/0001/0000000A/0000000A.history",
        "",
    ):
        with pytest.raises(PgrecallError):
            layout.parse_wal_key(bad)


@given(names, st.integers(0, 100_000))
def test_backup_keys_come_back(server: str, number: int) -> None:
    backup_id = "b-20261122T201637Z-7k3q"
    for key, kind, counted in (
        (layout.pack_key(server, backup_id, number), layout.PACK, number),
        (layout.manifest_part_key(server, backup_id, number), layout.MANIFEST_PART, number),
        (layout.manifest_key(server, backup_id), layout.MANIFEST, 0),
        (layout.complete_key(server, backup_id), layout.COMPLETE, 0),
    ):
        assert is_valid_key(key)
        assert key.startswith(layout.backup_prefix(server, backup_id))
        assert layout.parse_backup_key(key) == layout.BackupKey(server, backup_id, kind, counted)


def test_how_other_keys_look() -> None:
    assert layout.generation_key("main", 1) == "servers/main/generations/0001.json"
    assert layout.owner_key("main", 12) == "servers/main/owners/0012.json"
    assert layout.pack_key("main", "b-1", 7) == "servers/main/backups/b-1/pack-0007"
    assert layout.record_number("0012.json") == 12
    assert layout.record_number("12345.json") == 12345
    for bad in ("12.json", "0012", "0012.jsonx", "x.json", "00012.json", ".json", "²²²².json"):
        with pytest.raises(RepositoryError):
            layout.record_number(bad)
    for bad in ("servers/main/backups/b-1/pack-7", "servers/main/backups/b-1/other", "x"):
        with pytest.raises(RepositoryError):
            layout.parse_backup_key(bad)
