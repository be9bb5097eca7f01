"""PostgreSQL's own backup manifest, written by us, so that pg_verifybackup can prove a restore.

Source: PostgreSQL documentation, "Backup Manifest Format"; version 1 up to
PostgreSQL 16, version 2 (with the system identifier) from 17 on. The checksum
of a file is the CRC-32C that was combined while it was backed up, in the byte
order in which pg_verifybackup compares it (little endian, hexadecimal).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import BinaryIO

from pgrecall.model.manifest import ManifestRoot


def write_server_manifest(
    file: BinaryIO, root: ManifestRoot, files: Iterable[tuple[bytes, int, int, int]]
) -> None:
    """Write backup_manifest; ``files`` are (path, size in bytes, modified at, CRC-32C)."""
    digest = hashlib.sha256()

    def put(text: str) -> None:
        data = text.encode()
        digest.update(data)
        file.write(data)

    is_newer = root.server.version_num >= 170000
    put(f'{{ "PostgreSQL-Backup-Manifest-Version": {2 if is_newer else 1},\n')
    if is_newer:
        put(f'"System-Identifier": {root.system_identifier},\n')
    put('"Files": [')
    separator = "\n"
    for path, size, modified_at, crc in files:
        put(separator + _entry(path, size, modified_at, crc))
        separator = ",\n"
    put("\n],\n")
    wal = root.wal_range
    put(
        f'"WAL-Ranges": [\n{{ "Timeline": {wal.timeline}, "Start-LSN": "{wal.start}",'
        f' "End-LSN": "{wal.end}" }}\n],\n'
    )
    file.write(f'"Manifest-Checksum": "{digest.hexdigest()}"}}\n'.encode())


def _entry(path: bytes, size: int, modified_at: int, crc: int) -> str:
    try:
        named = f'"Path": {json.dumps(path.decode(), ensure_ascii=False)}'
    except UnicodeDecodeError:
        named = f'"Encoded-Path": "{path.hex()}"'
    modified = datetime.fromtimestamp(modified_at, UTC).strftime("%Y-%m-%d %H:%M:%S GMT")
    checksum = crc.to_bytes(4, "little").hex()
    return (
        f'{{ {named}, "Size": {size}, "Last-Modified": "{modified}",'
        f' "Checksum-Algorithm": "CRC32C", "Checksum": "{checksum}" }}'
    )
