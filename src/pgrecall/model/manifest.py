"""What a backup holds: the completion record, the manifest's root, its packs and its files.

All of them are stored records (docs/format.md). Fields that later formats add
have defaults, and unknown fields are ignored by readers.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from pgrecall.model.findings import Finding
from pgrecall.model.runs import ChainHead

FORMAT_VERSION = 1

BackupKind = Literal["full", "incremental"]
BackupSource = Literal["local", "stream"]


class PackEntry(msgspec.Struct, frozen=True, array_like=True):
    """One pack: its number, stored size in bytes, and the digest of its footer (hex).

    ``owner`` is the id of the backup under which the pack lies; empty means
    this one (an incremental refers to packs of older backups).
    """

    number: int
    stored_bytes: int
    footer_digest: str
    owner: str = ""


class Run(msgspec.Struct, frozen=True, array_like=True):
    """``length`` bytes of a file from ``file_offset``.

    They begin ``frame_offset`` bytes into the raw bytes of frame ``frame`` of
    the pack at index ``pack`` of the manifest's pack list, and go on through
    the following frames of that pack. Bytes of a file that no run covers are
    zeros; where runs overlap, the later one counts.

    ``spread``: how the bytes lie in the file where they are not consecutive, in
    pages of the server (block_bytes): so many pages from ``file_offset`` on,
    so many left out, so many that follow, and so on.
    """

    pack: int
    frame: int
    frame_offset: int
    file_offset: int
    length: int
    spread: tuple[int, ...] = ()


class DigestsEntry(msgspec.Struct, frozen=True, array_like=True):
    """One object of block digests: number, stored bytes, its digest (hex), and how many records.

    ``owner`` as of a pack: the older backup under which it lies; empty means this one.
    """

    number: int
    stored_bytes: int
    digest: str
    records: int
    owner: str = ""


class DigestSpan(msgspec.Struct, frozen=True, array_like=True):
    """The digests of ``count`` blocks of a file that follow each other, and their CRC-32C.

    They begin at record ``first`` of the object at index ``source`` of the
    manifest's list of digest objects.
    """

    source: int
    first: int
    count: int
    crc32c: int


class FileEntry(msgspec.Struct, frozen=True, array_like=True):
    """A file or directory, ``path`` relative to PGDATA with ``/`` (tablespaces: pg_tblspc/OID/...).

    ``path`` is text where the name is UTF-8; otherwise ``raw_path`` holds its
    bytes in hexadecimal and ``path`` a readable replacement. ``kind`` is "f" or
    "d"; ``mode`` the permission bits; ``owner`` and ``group`` index into the
    root's owners and groups; ``modified_at`` seconds since 1970 UTC;
    ``crc32c`` that of the whole file (the server manifest's checksum);
    ``bad_blocks`` the blocks that failed their page checksum; ``digests`` those of
    all blocks of the file in order, or none at all.
    """

    path: str
    kind: str
    mode: int
    owner: int
    group: int
    modified_at: int
    size: int = 0
    crc32c: int = 0
    runs: tuple[Run, ...] = ()
    bad_blocks: tuple[int, ...] = ()
    raw_path: str = ""
    digests: tuple[DigestSpan, ...] = ()

    def path_bytes(self) -> bytes:
        """The path as the file system has it."""
        return bytes.fromhex(self.raw_path) if self.raw_path else self.path.encode()


class PartEntry(msgspec.Struct, frozen=True, array_like=True):
    """One part of a manifest: number, what it lists, entries, stored bytes and digest (hex)."""

    number: int
    kind: Literal["files", "packs", "digests"]
    entries: int
    stored_bytes: int
    digest: str


class TablespaceEntry(msgspec.Struct, frozen=True):
    """A tablespace at backup time; ``location`` is where its link points, empty when in place."""

    oid: int
    name: str
    location: str
    is_in_place: bool = False


class ExternalFile(msgspec.Struct, frozen=True):
    """A configuration file outside PGDATA (base64 of its bytes): Debian keeps them in /etc."""

    role: Literal["config", "hba", "ident", "include"]
    path: str
    content: bytes


class ServerFactsRecord(msgspec.Struct, frozen=True):
    """What a restore must know of the server that was copied.

    Sizes in bytes; ``settings`` holds the values of pg_settings that restore
    needs (shared_preload_libraries, locale and directory settings...);
    ``collations`` the versions of glibc and ICU that indexes depend on.
    """

    version_num: int
    version: str
    catalog_version: int
    block_bytes: int
    relation_segment_bytes: int
    segment_bytes: int
    data_checksums: int
    data_directory: str
    max_connections: int
    max_worker_processes: int
    max_wal_senders: int
    max_prepared_transactions: int
    max_locks_per_transaction: int
    settings: dict[str, str] = {}
    collations: dict[str, str] = {}


class WalRange(msgspec.Struct, frozen=True):
    """WAL that a backup needs to become consistent, on one timeline; LSNs as text."""

    timeline: int
    start: str
    end: str


class ManifestRoot(msgspec.Struct, frozen=True, kw_only=True):
    """The small head of a manifest; ``parts`` hold the packs, the digest objects and the files.

    ``block_digest``: kind of the blocks' digests and its seed (16 hexadecimal digits)
    with a colon between; empty where there are none.
    """

    format: int = FORMAT_VERSION
    backup_id: str
    repository_id: str
    digest: str
    block_digest: str = ""
    suite: str = "none"
    kind: BackupKind
    source: BackupSource
    system_identifier: str
    backup_label: bytes
    tablespace_map: bytes
    wal_range: WalRange
    server: ServerFactsRecord
    tablespaces: tuple[TablespaceEntry, ...] = ()
    external_files: tuple[ExternalFile, ...] = ()
    owners: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    parts: tuple[PartEntry, ...] = ()


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Counts and bytes of a backup: raw ones of the files, stored ones of packs and manifest.

    ``new_bytes``: raw bytes that are in its own packs; the others lie in packs of older
    backups. ``packs`` and ``stored_bytes`` count its own objects only.
    """

    files: int
    directories: int
    raw_bytes: int
    stored_bytes: int
    packs: int
    new_bytes: int = 0
    pages_checked: int = 0
    pages_failed: int = 0
    files_vanished: int = 0
    wal_segments: int = 0


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The record that makes a backup exist; written last.

    LSNs are text; ``started_at`` and ``stopped_at`` are of the server's clock.
    ``base_id``: the backup that an incremental one was compared with; ``references``: the ids
    of all backups whose packs and digests it refers to, sorted; ``change_source``: how it was
    found what has changed, ``summaries`` of the WAL or ``digests`` of all files. ``run_heads``:
    how far the chains of run records had come (docs/runs.md). ``capture_id``: the capture that
    was current when it began, or empty.
    """

    format: int = FORMAT_VERSION
    backup_id: str
    repository_id: str
    server: str
    generation: int
    system_identifier: str
    kind: BackupKind
    source: BackupSource
    version_num: int
    segment_bytes: int
    timeline: int
    start_lsn: str
    stop_lsn: str
    started_at: datetime
    stopped_at: datetime
    completed_at: datetime
    duration_seconds: float
    label: str
    compression: str
    has_wal: bool
    totals: Totals
    manifest_bytes: int
    manifest_digest: str
    worst: str = "ok"
    finding_count: int = 0
    suite: str = "none"
    tool_version: str = ""
    restore_id: str = ""
    annotations: dict[str, str] = {}
    base_id: str = ""
    references: tuple[str, ...] = ()
    change_source: str = ""
    run_heads: tuple[ChainHead, ...] = ()
    capture_id: str = ""
