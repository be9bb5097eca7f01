"""The server's manifest against what has come: whatever differs ends the backup."""

from __future__ import annotations

import hashlib

import pytest

from pgrecall.backup.stream_manifest import ManifestProof
from pgrecall.codec.crc import crc32c
from pgrecall.errors import BackupError

FILES = {b"base/1/2": b"content", b'odd "name"': b"", b"\xff": b"bytes", b"left/out": b"?"}


def stated(files: dict[bytes, bytes], version: int = 2) -> bytes:
    """A manifest as backup_manifest.c writes it."""
    lines = []
    for path, content in files.items():
        if path == b"\xff":
            name = '"Encoded-Path": "ff"'
        else:
            name = '"Path": "' + path.decode().replace('"', '\\"') + '"'
        crc = crc32c(content).to_bytes(4, "little").hex()
        lines.append(
            f'{{ {name}, "Size": {len(content)}, "Last-Modified": "2026-01-01 00:00:00 GMT",'
            f' "Checksum-Algorithm": "CRC32C", "Checksum": "{crc}" }}'
        )
    text = f'{{ "PostgreSQL-Backup-Manifest-Version": {version},\n"Files": [\n'
    text += ",\n".join(lines) + '\n],\n"WAL-Ranges": [\n{ "Timeline": 1, "Start-LSN": "0/2",'
    text += ' "End-LSN": "0/3" }\n],\n'
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return f'{text}"Manifest-Checksum": "{checksum}"}}\n'.encode()


def prove(manifest: bytes, came: dict[bytes, bytes], pieces: int = 17) -> None:
    known = {path: (len(content), crc32c(content)) for path, content in came.items()}
    proof = ManifestProof(known.get, lambda path: path == b"left/out")
    for at in range(0, len(manifest), pieces):
        proof.feed(memoryview(manifest[at : at + pieces]))
    proof.finish(len(came))


def test_what_is_the_same_passes() -> None:
    came = {path: content for path, content in FILES.items() if path != b"left/out"}
    prove(stated(FILES), came)
    prove(stated(FILES), came, pieces=1 << 20)


def test_every_difference_is_found() -> None:
    came = {path: content for path, content in FILES.items() if path != b"left/out"}
    manifest = stated(FILES)
    for changed, why in (
        ({**came, b"base/1/2": b"Content"}, "is not what the server has read"),
        ({**came, b"base/1/2": b"conten"}, "is not what the server has read"),
        ({b"base/1/2": b"content"}, "it has not come"),
        ({**came, b"more": b""}, "names 3 files, 4 have come"),
    ):
        with pytest.raises(BackupError, match=why):
            prove(manifest, changed)
    with pytest.raises(BackupError, match="does not match its checksum"):
        prove(manifest.replace(b"0/2", b"0/1"), came)
    with pytest.raises(BackupError, match="ends too early"):
        prove(manifest[: manifest.index(b'"Manifest-Checksum')], came)
    with pytest.raises(BackupError, match="cannot be read"):
        prove(manifest.replace(b'"Size": 7', b'"Size": x'), came)
    with pytest.raises(BackupError, match="goes on behind"):
        prove(manifest + b"more\n", came)
