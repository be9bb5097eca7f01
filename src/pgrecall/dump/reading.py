"""Reading a dump back: each of its files as a stream of bytes, checked as they come."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgrecall.codec.crc import crc32c
from pgrecall.errors import CorruptObjectError
from pgrecall.model.dumps import DumpCompletion
from pgrecall.model.manifest import FileEntry, Run
from pgrecall.repository.dump_catalog import DumpCatalog
from pgrecall.repository.manifests import DumpManifestReader
from pgrecall.repository.pack_source import PackSource, spans
from pgrecall.repository.packs import PackReader

# The table of contents stands at the beginning of an archive, and in a file of its own.
_CONTENTS = "toc.dat"


class DumpFiles:
    """The files of one dump. For one thread."""

    def __init__(
        self, catalog: DumpCatalog, dump: DumpCompletion, manifest: DumpManifestReader
    ) -> None:
        self._source = PackSource(catalog.store, catalog.server, dump.backup_id, manifest.packs())
        self.entries = {entry.path: entry for entry in manifest.files()}

    def below(self, directory: str) -> list[FileEntry]:
        """All files of a directory, which ends with a slash."""
        return [entry for path, entry in self.entries.items() if path.startswith(directory)]

    def stream(self, path: str) -> Iterator[bytes | memoryview]:
        """The bytes of one file in order, a frame at a time.

        Each frame is checked before it is given; whether the whole is what was written (its size
        and CRC-32C) is known at the end only. Raises CorruptObjectError, ObjectMissingError,
        StoreError.
        """
        entry = self.entries[path]
        size = crc = 0
        for run in entry.runs:
            for raw in self._frames(run):
                crc = crc32c(raw, crc)
                size += len(raw)
                yield raw
        if size != entry.size or crc != entry.crc32c:
            raise CorruptObjectError(
                f"{path} of the dump is not what was written: {size} bytes, CRC-32C {crc:08x},"
                f" and not {entry.size} bytes, {entry.crc32c:08x}",
                hint="pgrecall verify tells what is damaged; use another dump",
            )

    def write(self, path: str, target: Path) -> None:
        """Write one file to ``target``, which must not exist."""
        with target.open("xb") as stream:
            for raw in self.stream(path):
                stream.write(raw)

    @contextmanager
    def spooled(self, path: str, directory: str, *, only_contents: bool = False) -> Iterator[str]:
        """What lies at a path (a directory ends with a slash), as files while the block lasts.

        Gives the path of it. ``only_contents``: of a directory just the table of contents.
        """
        place = Path(tempfile.mkdtemp(prefix="pgrecall-load-", dir=directory or None))
        try:
            if not path.endswith("/"):
                self.write(path, place / "dump")
            else:
                (place / "dump").mkdir()
                for entry in self.below(path):
                    name = entry.path.rpartition("/")[2]
                    if not only_contents or name == _CONTENTS:
                        self.write(entry.path, place / "dump" / name)
            yield str(place / "dump")
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _frames(self, run: Run) -> Iterator[bytes | memoryview]:
        """The raw frames of a run; a file's frames hold nothing else."""
        pack = self._source.open(run.pack)
        try:
            numbers = _numbers(pack, run)
            for first, last in spans(pack.frames, numbers):
                for _, raw in pack.raw_span(first, last):
                    yield raw
        finally:
            pack.close()


def _numbers(pack: PackReader, run: Run) -> list[int]:
    left, numbers = run.length, []
    for number in range(run.frame, len(pack.frames)):
        if left <= 0:
            break
        numbers.append(number)
        left -= pack.frames[number].raw_bytes
    if left != 0 or run.frame_offset != 0:
        raise CorruptObjectError(f"the pack {pack.key} ends before a run that refers to it")
    return numbers
