"""Packs, documents and manifests: round trips, and every damage is found."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgrecall.errors import CorruptObjectError, PgrecallError, RepositoryError
from pgrecall.model.manifest import (
    FileEntry,
    ManifestRoot,
    PackEntry,
    Run,
    ServerFactsRecord,
    WalRange,
)
from pgrecall.repository import layout, packs
from pgrecall.repository.documents import (
    MAGIC,
    DocumentHeader,
    decode_document,
    encode_document,
    sealed,
    unsealed,
)
from pgrecall.repository.manifests import PART_ENTRIES, ManifestReader, ManifestWriter
from pgrecall.repository.packs import PackHeader, PackReader, PackWriter
from pgrecall.store.memory import MemoryStore

BACKUP = "b-20261122T201637Z-7k3q"
SERVER = "main"
KEY = layout.pack_key(SERVER, BACKUP, 3)

Piece = tuple[bytes, int, int]


def header(**changes: object) -> PackHeader:
    fields = {"repository_id": "r1", "server": SERVER, "backup_id": BACKUP, "number": 3}
    return PackHeader(**{**fields, **changes})  # type: ignore[arg-type]


def write_pack(
    frames: list[tuple[bytes, list[Piece]]], codec: str = "zstd", **changes: object
) -> tuple[MemoryStore, PackWriter]:
    store = MemoryStore()
    writer = PackWriter(store.writer(KEY), header(**changes), codec, 1)
    for raw, slices in frames:
        writer.add(memoryview(raw), slices)
    assert writer.finish().commit()
    return store, writer


def read_pack(content: bytes, digest: str | None = None) -> list[tuple[bytes, list[Piece]]]:
    store = MemoryStore()
    store.put(KEY, [content])
    reader = PackReader(KEY, store.reader(KEY), digest)
    found = []
    for number, frame in enumerate(reader.frames):
        slices = [
            (reader.path(piece.path), piece.file_offset, piece.length) for piece in frame.slices
        ]
        found.append((bytes(reader.raw(number)), slices))
    reader.close()
    return found


names = st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name)
small_files = st.lists(st.tuples(names, st.binary(max_size=200)), max_size=30)


@settings(max_examples=60, deadline=None)
@given(st.lists(small_files, max_size=5), st.sampled_from(["zstd", "lz4", "none"]))
def test_what_goes_in_comes_out(frames: list[list[tuple[bytes, bytes]]], codec: str) -> None:
    written = [
        (
            b"".join(content for _, content in files),
            [(name, 8 * place, len(content)) for place, (name, content) in enumerate(files)],
        )
        for files in frames
    ]
    store, writer = write_pack(written, codec)
    content = store.read(KEY)
    assert read_pack(content, writer.footer_digest) == written
    assert len(content) == writer.stored_bytes


@pytest.mark.parametrize("path", [b"hex:00", b"\xff/\xfe", "ü ñ".encode(), b"a\nb", b"x" * 4000])
def test_paths_keep_their_bytes(path: bytes) -> None:
    store, _ = write_pack([(b"content", [(path, 0, 7)])])
    assert read_pack(store.read(KEY)) == [(b"content", [(path, 0, 7)])]


def test_a_span_is_read_at_once() -> None:
    written = [(bytes([number]) * 5000, [(b"file", 5000 * number, 5000)]) for number in range(6)]
    store, _ = write_pack(written)
    reader = PackReader(KEY, store.reader(KEY))
    assert [bytes(raw) for _, raw in reader.raw_span(1, 4)] == [raw for raw, _ in written[1:5]]
    with pytest.raises(CorruptObjectError, match="has no frame 6"):
        reader.raw(6)


def test_every_flipped_byte_and_every_truncation_of_a_pack_is_found() -> None:
    """Also without the manifest's digest; the footer's covers header and frames."""
    written = [
        (b"first file" * 20 + b"second", [(b"one", 0, 200), (b"two", 0, 6)]),
        (bytes(300), [(b"three", 0, 300)]),
    ]
    store, writer = write_pack(written)
    whole = store.read(KEY)
    for digest in (None, writer.footer_digest):
        for place in range(len(whole)):
            for mask in (0x01, 0x20, 0x80):
                damaged = bytearray(whole)
                damaged[place] ^= mask
                with pytest.raises(CorruptObjectError, match="pack-0003"):
                    read_pack(bytes(damaged), digest)
            with pytest.raises(CorruptObjectError):
                read_pack(whole[:place], digest)
        with pytest.raises(CorruptObjectError):
            read_pack(whole + b"\0", digest)


def test_another_pack_in_its_place_is_found() -> None:
    store, writer = write_pack([(b"x", [(b"x", 0, 1)])], number=4)
    with pytest.raises(CorruptObjectError, match="it is pack 4 of backup"):
        read_pack(store.read(KEY))
    other, _ = write_pack([(b"y", [(b"x", 0, 1)])])
    with pytest.raises(CorruptObjectError, match="footer that does not match"):
        read_pack(other.read(KEY), writer.footer_digest)


@pytest.mark.parametrize("change", [{"format": 2}, {"suite": "aes"}, {"digest": "sha256"}])
def test_a_pack_of_a_later_format_says_so(change: dict[str, object]) -> None:
    store, _ = write_pack([], **change)
    with pytest.raises(RepositoryError, match="cannot read that") as caught:
        read_pack(store.read(KEY))
    assert caught.type is RepositoryError


def test_a_damaged_frame_names_its_files() -> None:
    written = [(b"abcd", [(b"base/1/2", 8192, 1), (b"b", 0, 1), (b"c", 0, 1), (b"d", 0, 1)])]
    store, _ = write_pack(written, "none")
    damaged = bytearray(store.read(KEY))
    damaged[damaged.index(b"abcd")] ^= 1
    with pytest.raises(CorruptObjectError, match=r"frame 0 .*base/1/2 bytes 8192 to 8193.*1 more"):
        read_pack(bytes(damaged))


# --- documents --------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=2000))
def test_documents_come_back(body: bytes) -> None:
    assert bytes(decode_document("k", "kind", encode_document("kind", "r", body))) == body


def test_every_damage_of_a_document_is_found() -> None:
    whole = encode_document("kind", "r", b"the body of the document" * 5)
    for place in range(len(whole)):
        for mask in (0x01, 0x20, 0x80):
            damaged = bytearray(whole)
            damaged[place] ^= mask
            with pytest.raises(CorruptObjectError, match="the object k"):
                decode_document("k", "kind", bytes(damaged))
        with pytest.raises(CorruptObjectError):
            decode_document("k", "kind", whole[:place])
    with pytest.raises(CorruptObjectError, match="digest that its backup recorded"):
        decode_document("k", "kind", whole, digest="00" * 32)
    with pytest.raises(CorruptObjectError, match="is a 'kind' and not a 'other'"):
        decode_document("k", "other", whole)


def test_a_document_of_a_later_format_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    later = DocumentHeader(format=2, kind="kind", repository_id="r", raw_bytes=0)
    monkeypatch.setattr(
        "pgrecall.repository.documents.DocumentHeader", lambda **fields: later, raising=True
    )
    stored = encode_document("kind", "r", b"")
    assert stored.startswith(MAGIC)
    with pytest.raises(RepositoryError, match="format 2") as caught:
        decode_document("k", "kind", stored)
    assert caught.type is RepositoryError


class Record(msgspec.Struct, frozen=True):
    name: str
    number: int


def test_sealed_records_notice_every_change() -> None:
    """Only white space around the record may change: nothing reads it."""
    record = Record('a "name", ü', 7)
    whole = sealed(record)
    assert msgspec.json.decode(unsealed("k", whole), type=Record) == record
    for place in range(len(whole)):
        for mask in (0x01, 0x20, 0x80):
            damaged = bytearray(whole)
            damaged[place] ^= mask
            with pytest.raises(CorruptObjectError, match="the object k"):
                unsealed("k", bytes(damaged))
        if place < len(whole) - 1:
            with pytest.raises(CorruptObjectError):
                unsealed("k", whole[:place])


# --- manifests ----------------------------------------------------------------------------


def root(parts: tuple[object, ...], **changes: object) -> ManifestRoot:
    fields: dict[str, object] = {
        "backup_id": BACKUP,
        "repository_id": "r1",
        "digest": "blake3",
        "kind": "full",
        "source": "local",
        "system_identifier": str(2**64 - 1),
        "backup_label": b"START WAL LOCATION: \xff",
        "tablespace_map": b"16385 /a\\\nb\n",
        "wal_range": WalRange(1, "0/2000028", "0/2000120"),
        "server": ServerFactsRecord(
            version_num=180006, version="18.6", catalog_version=1, block_bytes=8192,
            relation_segment_bytes=1 << 30, segment_bytes=1 << 24, data_checksums=1,
            data_directory="/x", max_connections=1, max_worker_processes=1, max_wal_senders=1,
            max_prepared_transactions=0, max_locks_per_transaction=64,
        ),
        "parts": parts,
    }  # fmt: skip
    return ManifestRoot(**{**fields, **changes})  # type: ignore[arg-type]


def entry(number: int) -> FileEntry:
    raw = b"\xff%d" % number if number % 3 == 0 else b"base/%d" % number
    path = raw.decode(errors="replace")
    return FileEntry(
        path, "f", 0o600, 0, 0, 1_700_000_000, 2**40 + number, 2**32 - 1,
        (Run(0, number, 5, 0, 10), Run(1, 0, 0, 2**33, 7)), (1, 131072),
        raw.hex() if number % 3 == 0 else "",
    )  # fmt: skip


def write_manifest(store: MemoryStore, count: int, **changes: object) -> str:
    writer = ManifestWriter(store, SERVER, BACKUP, "r1")
    writer.add_packs([PackEntry(0, 100, "aa"), PackEntry(7, 200, "bb", "b-other")])
    writer.add_files(entry(number) for number in range(count))
    made = root(writer.parts, **changes)
    stored = writer.finish(made)
    assert stored.all_bytes == sum(info.size for info in store.list(""))
    assert set(stored.sizes) == set(store.objects)
    return stored.root_digest


@pytest.mark.parametrize("count", [0, 1, PART_ENTRIES, PART_ENTRIES + 1])
def test_manifests_come_back_in_parts(count: int) -> None:
    store = MemoryStore()
    digest = write_manifest(store, count)
    reader = ManifestReader(store, SERVER, BACKUP, digest)
    assert reader.root == root(reader.root.parts)
    assert reader.packs() == [PackEntry(0, 100, "aa"), PackEntry(7, 200, "bb", "b-other")]
    found = list(reader.files())
    assert found == [entry(number) for number in range(count)]
    assert [part.kind for part in reader.root.parts].count("files") == -(-count // PART_ENTRIES)
    assert all(file.path_bytes() == (b"\xff%d" % n if n % 3 == 0 else b"base/%d" % n)
               for n, file in enumerate(found))  # fmt: skip


def test_every_damage_of_a_manifest_is_found() -> None:
    store = MemoryStore()
    digest = write_manifest(store, 3)
    objects = dict(store.objects)
    for key, (whole, stored_at) in objects.items():
        for place in range(len(whole)):
            damaged = bytearray(whole)
            damaged[place] ^= 0x10
            for content in (bytes(damaged), whole[:place]):
                store.objects[key] = (content, stored_at)
                with pytest.raises(CorruptObjectError, match=key.rpartition("/")[2]):
                    read_manifest(store, digest)
        del store.objects[key]
        with pytest.raises(PgrecallError):
            read_manifest(store, digest)
        store.objects[key] = (whole, stored_at)
    read_manifest(store, digest)


def read_manifest(store: MemoryStore, digest: str) -> None:
    reader = ManifestReader(store, SERVER, BACKUP, digest)
    reader.packs()
    list(reader.files())


def test_parts_of_another_manifest_are_found() -> None:
    """Each part is whole in itself; the root knows which ones are its own."""
    store, other = MemoryStore(), MemoryStore()
    digest = write_manifest(store, 3)
    write_manifest(other, 4)
    key = layout.manifest_part_key(SERVER, BACKUP, 1)
    store.objects[key] = other.objects[key]
    with pytest.raises(CorruptObjectError, match="digest that its backup recorded"):
        read_manifest(store, digest)


def test_a_manifest_of_another_backup_or_a_later_format() -> None:
    store = MemoryStore()
    digest = write_manifest(store, 1, backup_id="b-20261122T201637Z-zzzz")
    with pytest.raises(CorruptObjectError, match="is the manifest of b-20261122T201637Z-zzzz"):
        read_manifest(store, digest)
    later = MemoryStore()
    digest = write_manifest(later, 1, format=2)
    with pytest.raises(RepositoryError, match="has format 2") as caught:
        read_manifest(later, digest)
    assert caught.type is RepositoryError


def test_an_object_in_the_way() -> None:
    """Our own bytes of an earlier try are ours; others are refused and stay."""
    store = MemoryStore()
    digest = write_manifest(store, 3)
    again = ManifestWriter(store, SERVER, BACKUP, "r1")
    again.add_packs([PackEntry(0, 100, "aa"), PackEntry(7, 200, "bb", "b-other")])
    again.add_files(entry(number) for number in range(3))
    assert again.finish(root(again.parts)).root_digest == digest
    foreign = ManifestWriter(store, SERVER, BACKUP, "r1")
    with pytest.raises(RepositoryError, match="exists already"):
        foreign.add_packs([PackEntry(1, 100, "aa")])
    read_manifest(store, digest)


def test_frames_have_the_size_that_the_format_says() -> None:
    assert packs.FRAME_BYTES == 1 << 20
