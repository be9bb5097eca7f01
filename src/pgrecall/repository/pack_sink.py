"""Where frames are put: packs that are filled in turn and committed in the background."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing

from pgrecall.errors import CorruptObjectError, RepositoryError
from pgrecall.model.manifest import PackEntry
from pgrecall.repository import layout
from pgrecall.repository.packs import PackHeader, PackReader, PackWriter
from pgrecall.store.base import Buffer, ObjectWriter, Store
from pgrecall.system.faults import reached
from pgrecall.system.held_signals import signals_held

COMMITTERS = 2
"""Packs that are committed at the same time, where nothing else is said; as many more wait."""

# Bounds the footer, which writers and readers hold in memory: tiny files would never fill a pack.
_PACK_SLICES = 16_384


class PackFactory:
    """Numbers, opens and commits the packs of one backup; shared by all workers.

    At most ``committers`` packs are being committed and as many wait, so that
    memory stays under (workers + 2 x committers) x pack size on stores whose
    writers hold a pack in memory.
    """

    def __init__(
        self,
        store: Store,
        header: PackHeader,
        *,
        codec: str,
        level: int,
        committers: int = COMMITTERS,
    ) -> None:
        self.store = store
        self._header = header
        self._codec = codec
        self._level = level
        self._lock = threading.Lock()
        self._count = 0
        self._entries: dict[int, PackEntry] = {}
        self._created: dict[str, int] = {}
        self._pool = ThreadPoolExecutor(committers, thread_name_prefix="commit")
        self._slots = threading.BoundedSemaphore(2 * committers)
        self._pending: dict[int, ObjectWriter] = {}
        self._commits: list[Future[None]] = []
        self._failure: BaseException | None = None

    def open(self) -> PackWriter:
        """Begin the next pack."""
        with self._lock:
            number = self._count
            self._count += 1
        header = PackHeader(
            repository_id=self._header.repository_id,
            server=self._header.server,
            backup_id=self._header.backup_id,
            number=number,
        )
        key = layout.pack_key(header.server, header.backup_id, number)
        writer = self.store.writer(key)
        try:
            return PackWriter(writer, header, self._codec, self._level)
        except BaseException:
            writer.discard()
            raise

    def commit(self, pack: PackWriter) -> None:
        """Publish a full pack in the background; raises what an earlier commit raised."""
        self.raise_failure()
        writer = pack.finish()
        self._slots.acquire()
        # A thread that is just being started when a signal comes would be unknown to the pool, and
        # close() would neither wait for it nor drop its pack.
        with signals_held():
            with self._lock:
                self._pending[pack.number] = writer
            commit = self._pool.submit(self._publish, pack, writer)
        with self._lock:
            self._commits = [one for one in self._commits if not one.done()] + [commit]

    def finish(self) -> list[PackEntry]:
        """Wait for every commit; the packs by number. All of them are durable then."""
        # Not for the threads: a join that a signal interrupts takes them for ended ever after
        # (Python 3.11, threading._wait_for_tstate_lock), and close() would not wait for them.
        wait(self._commits)
        self._pool.shutdown(wait=True)
        self.raise_failure()
        if len(self._entries) != self._count:
            raise RepositoryError(f"{self._count - len(self._entries)} packs were not committed")
        return [self._entries[number] for number in sorted(self._entries)]

    def close(self) -> None:
        """End the background threads; commits that have begun are waited for, others dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for writer in self._pending.values():
            writer.discard()
        self._pending.clear()

    @property
    def created(self) -> dict[str, int]:
        """Keys, and sizes in bytes, of the packs that this factory has stored, for certain."""
        with self._lock:
            return dict(self._created)

    def raise_failure(self) -> None:
        """Raise what the first commit that failed has raised, if one has."""
        if self._failure is not None:
            raise self._failure

    def _publish(self, pack: PackWriter, writer: ObjectWriter) -> None:
        try:
            self._publish_one(pack, writer)
        except BaseException as error:
            # Whoever commits, finishes or watches next raises it.
            self._failure = self._failure or error
            raise
        finally:
            with self._lock:
                del self._pending[pack.number]
            self._slots.release()

    def _publish_one(self, pack: PackWriter, writer: ObjectWriter) -> None:
        with writer:
            reached("pack.commit")
            if not writer.commit() and not self._is_ours(pack):
                raise RepositoryError(
                    f"pack {pack.number} exists already in {self.store.name}",
                    hint="two runs used one backup id; run the backup again",
                )
            entry = PackEntry(pack.number, pack.stored_bytes, pack.footer_digest)
        key = layout.pack_key(self._header.server, self._header.backup_id, pack.number)
        with self._lock:
            self._entries[pack.number] = entry
            self._created[key] = pack.stored_bytes

    def _is_ours(self, pack: PackWriter) -> bool:
        """Whether the pack was stored by an earlier try of this commit, whose answer was lost."""
        key = layout.pack_key(self._header.server, self._header.backup_id, pack.number)
        try:
            with closing(PackReader(key, self.store.reader(key), pack.footer_digest)) as found:
                return found.stored_bytes == pack.stored_bytes
        except CorruptObjectError:
            return False  # somebody else's


class PackSink:
    """One worker's way into packs; for one thread."""

    def __init__(self, factory: PackFactory) -> None:
        self._factory = factory
        self._pack: PackWriter | None = None

    def add(self, raw: Buffer, slices: list[tuple[bytes, int, int]]) -> tuple[int, int]:
        """Store one frame; returns (pack number, frame number)."""
        if self._pack is None:
            self._pack = self._factory.open()
        pack = self._pack
        frame = pack.frame_count
        pack.add(raw, slices)
        is_full = pack.stored_bytes >= self._factory.store.pack_bytes
        if is_full or pack.slice_count >= _PACK_SLICES:
            self.finish_pack()
        return pack.number, frame

    def finish_pack(self) -> None:
        """Hand over the open pack, if there is one."""
        pack, self._pack = self._pack, None
        if pack is not None:
            try:
                self._factory.commit(pack)
            except BaseException:
                pack.discard()
                raise

    def discard(self) -> None:
        """Drop the open pack, if there is one."""
        pack, self._pack = self._pack, None
        if pack is not None:
            pack.discard()
