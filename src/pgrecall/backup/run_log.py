"""Where the bytes of each file went: runs as the workers wrote them, kept in 40 bytes each."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence

from pgrecall.backup.digest_log import DigestIndex
from pgrecall.codec.crc import crc32c_combine, crc32c_of_zeros
from pgrecall.model.file_table import FILE, FileTable
from pgrecall.model.manifest import FileEntry, Run

_RECORD = struct.Struct("<IIIIQQI4x")
_NONE = 0xFFFFFFFF


class RunLog:
    """One worker's runs; for one thread."""

    def __init__(self) -> None:
        self._records = bytearray()
        self._open: list[int] | None = None
        self._next_frame = -1

    def add(
        self, file: int, file_offset: int, length: int, crc: int, *, place: tuple[int, int, int]
    ) -> None:
        """Note ``length`` bytes of a file; ``crc`` is their CRC-32C alone.

        ``place`` is (pack, frame, offset within the raw frame). Bytes that
        follow the ones noted last, in the next frame of the same pack, make
        that run longer.
        """
        pack, frame, frame_offset = place
        last = self._open
        if (
            last is not None
            and frame_offset == 0
            and frame == self._next_frame
            and (last[0], last[1]) == (file, pack)
            and last[4] + last[5] == file_offset
        ):
            last[5] += length
            last[6] = crc32c_combine(last[6], crc, length)
        else:
            self._close()
            self._open = [file, pack, frame, frame_offset, file_offset, length, crc]
        self._next_frame = frame + 1

    def records(self) -> bytearray:
        """Everything noted so far."""
        self._close()
        return self._records

    def _close(self) -> None:
        if self._open is not None:
            self._records += _RECORD.pack(*self._open)
            self._open = None


class RunIndex:
    """The runs of all workers, found by file without sorting them all."""

    def __init__(self, logs: Sequence[RunLog], file_count: int) -> None:
        self._records = bytearray()
        for log in logs:
            self._records += log.records()
        count = len(self._records) // _RECORD.size
        self._first = array("I", [_NONE]) * file_count
        self._next = array("I", [_NONE]) * count
        for number, (file, *_) in enumerate(_RECORD.iter_unpack(self._records)):
            self._next[number] = self._first[file]
            self._first[file] = number

    def of(self, file: int) -> tuple[list[Run], int, int]:
        """Runs of a file by offset, the size that they reach, and the CRC-32C of the whole.

        What lies between two runs is zeros: the file was cut and grew again
        meanwhile, and WAL replay writes what belongs there.
        """
        found = []
        number = self._first[file]
        while number != _NONE:
            found.append(_RECORD.unpack_from(self._records, number * _RECORD.size))
            number = self._next[number]
        found.sort(key=lambda record: int(record[4]))
        runs: list[Run] = []
        crc = size = 0
        for _, pack, frame, frame_offset, file_offset, length, run_crc in found:
            if file_offset > size:
                crc = crc32c_combine(crc, crc32c_of_zeros(file_offset - size), file_offset - size)
            crc = crc32c_combine(crc, run_crc, length) if file_offset else run_crc
            size = file_offset + length
            runs.append(Run(pack, frame, frame_offset, file_offset, length))
        return runs, size, crc


def file_entries(
    table: FileTable,
    runs: RunIndex,
    digests: DigestIndex,
    *,
    vanished: set[int],
    bad_blocks: dict[int, list[int]],
    owners: tuple[dict[int, int], dict[int, int]],
) -> Iterator[FileEntry]:
    """The manifest's entries, in the table's order; ``owners`` maps uids and gids to indexes."""
    uids, gids = owners
    for index, kind in enumerate(table.kinds):
        if index in vanished:
            continue
        raw = table.path(index)
        path, raw_path = _printable(raw)
        found, size, crc = runs.of(index) if kind == FILE else ([], 0, 0)
        yield FileEntry(
            path=path,
            kind=chr(kind),
            mode=table.modes[index],
            owner=uids[table.uids[index]],
            group=gids[table.gids[index]],
            modified_at=table.modified[index],
            size=size,
            crc32c=crc,
            runs=tuple(found),
            bad_blocks=tuple(sorted(bad_blocks.get(index, ()))),
            raw_path=raw_path,
            digests=digests.of(index, size) if size else (),
        )


def _printable(path: bytes) -> tuple[str, str]:
    try:
        return path.decode(), ""
    except UnicodeDecodeError:
        return path.decode(errors="replace"), path.hex()
