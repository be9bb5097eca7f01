"""What backups that were never completed have stored: the next one refers to it, and does not store
it again.

Nothing is believed: the bytes of a leftover frame are read, checked against their digest,
decompressed, and compared with what was read from the file now.

Whether a run that fails deletes its packs, and whether a later one refers to them, must never be
answered with yes both times. Hence the two numbers, both of packs of LARGE_BYTES or more: a run
that has stored KEPT_PACKS of them never deletes its packs, and nobody refers to those of a run
that left fewer than RESUMED_PACKS. Between the two lie as many commits as a run can have under
way, whose answers it may not know. Smaller packs do not count: of a small server each worker
leaves one.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pgrecall.errors import CorruptObjectError, ObjectMissingError, StoreError
from pgrecall.model.file_table import FileTable
from pgrecall.model.manifest import PackEntry
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.pack_sink import COMMITTERS
from pgrecall.repository.packs import PackReader
from pgrecall.store.base import Store

log = logging.getLogger(__name__)

KEPT_PACKS = 4
RESUMED_PACKS = KEPT_PACKS + 2 * COMMITTERS
LARGE_BYTES = 2 << 20

# Workers of the earlier run filled so many packs side by side.
_OPEN_PACKS = 4
_SLICE = np.dtype(
    [("file", "<u4"), ("offset", "<i8"), ("length", "<i8"), ("pack", "<u4"), ("frame", "<u4"),
     ("start", "<u4")]
)  # fmt: skip


class Found(NamedTuple):
    """The first ``length`` bytes of what was asked for: the pack's index, frame, place in it."""

    length: int
    place: tuple[int, int, int]


class _Contents(NamedTuple):
    """A pack: its key, its entry in a manifest, its paths, and its slices by place in these."""

    key: str
    entry: PackEntry
    paths: list[bytes]
    slices: npt.NDArray[np.void]


class Leftover:
    """The packs of unfinished backups, and which bytes of which files they hold.

    ``packs``: as a manifest lists them. 40 bytes for each MiB, or small file, that they hold.
    """

    def __init__(self, store: Store) -> None:
        self.packs: list[PackEntry] = []
        self._store = store
        self._keys: list[str] = []
        self._paths: dict[bytes, int] = {}
        self._slices: npt.NDArray[np.void] = np.zeros(0, _SLICE)
        self._places = np.zeros(0, np.int64)
        self._lock = threading.Lock()
        self._spoilt: set[int] = set()

    def read(self, unfinished: Unfinished, workers: int) -> None:
        """Read what the packs hold, several side by side; those that cannot be read are left out.

        Done before the server begins the backup: for each pack the store is asked two times.
        Where two hold the same place of a file, it is looked for in the one that comes first.
        """
        parts = [self._slices]
        with ThreadPoolExecutor(workers, thread_name_prefix="leftover") as pool:
            for contents in pool.map(self._read, *zip(*unfinished.packs, strict=True)):
                if contents is None:
                    continue
                slices = contents.slices
                numbers = [
                    self._paths.setdefault(path, len(self._paths)) for path in contents.paths
                ]
                slices["file"] = np.array(numbers, np.uint32)[slices["file"]]
                slices["pack"] = len(self.packs)
                parts.append(slices)
                self.packs.append(contents.entry)
                self._keys.append(contents.key)
        self._slices = np.concatenate(parts)

    def match(self, table: FileTable) -> None:
        """Find the files of ``table`` in what was read."""
        files = np.full(len(self._paths), -1, np.int64)
        for index in table.files():
            known = self._paths.get(table.path(index))
            if known is not None:
                files[known] = index
        self._paths = {}
        slices = self._slices
        of_file = files[slices["file"]] if len(slices) else np.zeros(0, np.int64)
        slices = slices[of_file >= 0]
        slices["file"] = of_file[of_file >= 0]
        self._slices = slices[np.lexsort((slices["offset"], slices["file"]))]
        # By file and offset: files of 1 TiB and more are not looked for.
        self._places = self._slices["file"].astype(np.int64) << 40 | self._slices["offset"]
        log.info(
            "going on from unfinished backups",
            extra={
                "unfinished": sorted({pack.owner for pack in self.packs}),
                "packs": len(self.packs),
            },
        )

    def reader(self) -> LeftoverReader:
        """For one thread."""
        return LeftoverReader(self)

    def slice_at(self, file: int, offset: int) -> npt.NDArray[np.void] | None:
        """What begins at ``offset`` of a file; None when nothing does, or its pack is damaged."""
        wanted = file << 40 | offset
        number = int(np.searchsorted(self._places, wanted))
        if number == len(self._places) or self._places[number] != wanted:
            return None
        found: npt.NDArray[np.void] = self._slices[number]
        return found if int(found["pack"]) not in self._spoilt else None

    def open(self, pack: int) -> PackReader:
        """One of the packs; raises CorruptObjectError, ObjectMissingError, StoreError."""
        entry = self.packs[pack]
        return self._open(self._keys[pack], entry.footer_digest)

    def spoil(self, pack: int, error: Exception) -> None:
        """Use a pack no more: what it holds is stored anew."""
        with self._lock:
            self._spoilt.add(pack)
        log.warning("what an unfinished backup has left is not used: %s", error)

    def _open(self, key: str, footer_digest: str | None = None) -> PackReader:
        reader = self._store.reader(key)
        try:
            return PackReader(key, reader, footer_digest)
        except BaseException:
            reader.close()
            raise

    def _read(self, owner: str, key: str) -> _Contents | None:
        """What a pack of ``owner`` holds; None when it cannot be used."""
        try:
            pack = self._open(key)
        except (CorruptObjectError, ObjectMissingError, StoreError) as error:
            log.warning("what an unfinished backup has left is not used: %s", error)
            return None
        try:
            paths = [pack.path(index) for index in range(len(pack.footer.paths))]
            rows = []
            for number, frame in enumerate(pack.frames):
                start = 0
                for one in frame.slices:
                    rows.append((one.path, one.file_offset, one.length, 0, number, start))
                    start += one.length
            entry = PackEntry(pack.header.number, pack.stored_bytes, pack.footer_digest, owner)
        finally:
            pack.close()
        return _Contents(key, entry, paths, np.array(rows, _SLICE))


class LeftoverReader:
    """Compares with what leftover frames hold; for one thread."""

    def __init__(self, leftover: Leftover) -> None:
        self._leftover = leftover
        self._open: OrderedDict[int, PackReader] = OrderedDict()
        self._frame: tuple[int, int] = (-1, -1)
        self._raw: bytes | memoryview = b""

    def find(self, file: int, offset: int, data: memoryview) -> Found | None:
        """Where the first bytes of ``data``, which lie at ``offset`` of a file, are stored."""
        known = self._leftover.slice_at(file, offset)
        if known is None:
            return None
        pack, frame, start = int(known["pack"]), int(known["frame"]), int(known["start"])
        length = min(int(known["length"]), len(data))
        try:
            raw = self._raw_frame(pack, frame)
        except (CorruptObjectError, ObjectMissingError, StoreError) as error:
            self._leftover.spoil(pack, error)
            return None
        stored = np.frombuffer(raw, np.uint8)[start : start + length]
        if not np.array_equal(stored, np.frombuffer(data[:length], np.uint8)):
            return None
        return Found(length, (pack, frame, start))

    def close(self) -> None:
        """Close the packs."""
        while self._open:
            self._open.popitem()[1].close()
        self._raw = b""

    def _raw_frame(self, pack: int, frame: int) -> bytes | memoryview:
        if self._frame != (pack, frame):
            reader = self._open.get(pack)
            if reader is None:
                reader = self._open[pack] = self._leftover.open(pack)
                if len(self._open) > _OPEN_PACKS:
                    self._open.popitem(last=False)[1].close()
            self._open.move_to_end(pack)
            self._frame = (-1, -1)
            self._raw = reader.raw(frame)
            self._frame = (pack, frame)
        return self._raw


def large_packs(sizes: Iterable[int]) -> int:
    """How many packs of these sizes (bytes) count, see above."""
    return sum(size >= LARGE_BYTES for size in sizes)


class Unfinished(NamedTuple):
    """Backups that were never completed, newest first: of each pack the backup's id and the key."""

    packs: list[tuple[str, str]]

    @property
    def backup_ids(self) -> list[str]:
        """Whose packs these are, newest first."""
        return list(dict.fromkeys(backup_id for backup_id, _ in self.packs))


def find_unfinished(catalog: Catalog) -> Unfinished | None:
    """The backups that were begun after the newest complete one, and left enough each.

    All of them: one that went on from another has stored what that lacked. One may still run,
    on another host: that does no harm, see above. Raises StoreError.
    """
    found = []
    for backup_id in catalog.begun_since_complete():
        prefix = layout.pack_prefix(catalog.server, backup_id)
        packs = list(catalog.store.list(prefix))
        if large_packs(info.size for info in packs) >= RESUMED_PACKS:
            found += [(backup_id, info.key) for info in packs]
    return Unfinished(found) if found else None


def read_leftover(store: Store, unfinished: Unfinished, workers: int) -> Leftover:
    """What they left, read by so many threads; packs that are gone by now are left out."""
    leftover = Leftover(store)
    leftover.read(unfinished, workers)
    return leftover
