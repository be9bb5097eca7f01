"""From the spool into the repositories: whole segments, histories, and tails in between.

The repositories are asked as ``wal push`` asks them (wal.targets): same identity,
same owner, never overwritten; what is there already with the same content is
success, so that archive_command and streaming do not disturb each other. A
spooled file is removed only when every required repository has it.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime

from pgrecall.codec.compression import make_frame_encoder
from pgrecall.codec.wal_scan import read_segment_header, scan_segment
from pgrecall.errors import (
    CorruptObjectError,
    IdentityError,
    ObjectMissingError,
    PgrecallError,
    WalConflictError,
    WalFormatError,
)
from pgrecall.model.lsn import Lsn
from pgrecall.model.wal_files import SEGMENT, WalFile
from pgrecall.repository import layout
from pgrecall.repository.gaps import Gap, write_gap
from pgrecall.repository.identity import (
    open_repository,
    require_generation,
    require_writer,
)
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.repository.wal_objects import (
    WalContent,
    WalHeader,
    WalObjectReader,
    WalObjectWriter,
)
from pgrecall.repository.wal_tails import KIND, PIECE_BYTES, pieces_of
from pgrecall.settings.collection import Settings
from pgrecall.settings.sections import RepositorySettings, ServerSettings
from pgrecall.system.faults import reached
from pgrecall.wal.archives import Archive, first_of
from pgrecall.wal.leftover_tails import drop_covered_tails
from pgrecall.wal.push import required_repositories
from pgrecall.wal.receive_spool import TAIL_SUFFIX
from pgrecall.wal.source import Origin, check_source, opened
from pgrecall.wal.targets import Target, target_store

_log = logging.getLogger(__name__)

_Act = Callable[[Target], object]


class Landing:
    """The repositories of one server, kept open; for one thread at a time."""

    def __init__(
        self,
        settings: Settings,
        server: ServerSettings,
        environment: Mapping[str, str],
        origin: Origin,
    ) -> None:
        """Nothing is asked yet. Raises SettingsError when no repository is required."""
        self.origin = origin
        self.warnings: dict[str, str] = {}
        self._settings = settings
        self._server = server
        self._environment = environment
        self._repositories = required_repositories(settings, server)
        self._targets: dict[str, Target] = {}
        self._encode = make_frame_encoder(settings.wal.compression, settings.wal.level)

    def archives(self) -> list[WalArchive]:
        """Every required repository, as readers see it; raises as ``store``."""
        required = [one for one in self._repositories if one.role == "required"]
        targets = [self._target(one) for one in required]
        return [WalArchive(t.archive.store, self._server.name, t.generation) for t in targets]

    def store(self, path: str) -> None:
        """Store a whole segment or a history file; durable in every required repository.

        Raises what ``wal push`` raises.
        """
        file = WalFile(os.path.basename(path))
        with opened(path, file) as raw:
            source = check_source(file, path, raw, ("", None), self.origin)
            self._each(lambda target: target.put(source, self._encode))

    def store_tail(self, segment: str, padded: memoryview, size: int) -> Lsn:
        """Store the first ``size`` bytes of a segment; its end.

        ``padded`` is as long as the segment, zeros behind ``size``.

        Shorter tails are removed when this one is durable in every required
        repository. Raises as ``store``; WalFormatError when it is no WAL.
        """
        file = WalFile(segment)
        header = read_segment_header(padded[:64])
        if header.system_identifier != self.origin.system_identifier:
            raise IdentityError(
                f"the tail of {segment} has system identifier {header.system_identifier};"
                f" {self.origin.where} has {self.origin.system_identifier}",
                hint="the spool holds another server's WAL: move it away",
            )
        start = file.start(header.segment_bytes)
        index = scan_segment(padded, start).index.to_bytes()
        content = padded[:size]
        self._each(lambda target: self._put_tail(target, segment, content, (start, index)))
        self._each(lambda target: _drop_shorter(target, segment, start + size))
        return Lsn(start + size)

    def drop_tails(self, segment: str) -> None:
        """Remove the tails of a segment that is stored whole."""
        self._each(lambda target: _drop_all(target, segment))

    def drop_covered_tails(self) -> list[str]:
        """Remove tails that an earlier end left beside their whole segments.

        Returns why others stay that seem to be such. Raises as ``store``.
        """
        kept: list[str] = []
        self._each(lambda target: kept.extend(drop_covered_tails(target)))
        return kept

    def record_gap(self, gap: Gap) -> None:
        """Write down, for good, that these bytes were never received."""
        self._each(
            lambda target: write_gap(
                target.archive.store, target.server, target.generation.number, gap
            )
        )

    # --- inside ------------------------------------------------------------------------

    def _each(self, act: _Act) -> None:
        """Do it in every repository: a required one must succeed, of another one is told."""
        failures: list[PgrecallError] = []
        for repository in self._repositories:
            try:
                act(self._target(repository))
                self.warnings.pop(repository.name, None)
            except PgrecallError as error:
                self._targets.pop(repository.name, None)
                if repository.role == "required":
                    failures.append(error)
                elif repository.name not in self.warnings:
                    self.warnings[repository.name] = error.message
                    _log.warning("repository %r: %s", repository.name, error.message)
        if failures:
            raise first_of(failures)

    def _target(self, repository: RepositorySettings) -> Target:
        """The repository, open, with this server its owner at this moment (fact 2)."""
        origin, name = self.origin, self._server.name
        known = self._targets.get(repository.name)
        if known is not None:
            known.writer = require_writer(known.archive.store, name, origin.writer, origin.where)
            return known
        store = target_store(self._settings, repository, self._environment)
        identity = open_repository(store)
        generation = require_generation(store, name, origin.system_identifier, origin.where)
        writer = require_writer(store, name, origin.writer, origin.where)
        target = Target(Archive(repository.name, store, identity), name, generation, writer)
        self._targets[repository.name] = target
        return target

    def _put_tail(
        self, target: Target, segment: str, view: memoryview, known: tuple[Lsn, bytes]
    ) -> None:
        start, index = known
        if target.generation.segment_bytes != read_segment_header(view[:64]).segment_bytes:
            raise IdentityError(f"the tail of {segment} is of segments of another size")
        there = set(pieces_of(target.archive.store, target.server, target.generation, segment))
        for at in range(0, len(view), PIECE_BYTES):
            piece = view[at : at + PIECE_BYTES]
            span = (start + at, start + at + len(piece))
            if span in there and at + len(piece) < len(view):
                continue  # a piece that is full, and was stored with an earlier tail
            name = layout.tail_name(*span)
            key = layout.tail_key(target.server, target.generation.number, segment, name)
            header = WalHeader(f"{segment}/{name}", KIND)
            header.system_identifier = target.generation.system_identifier
            header.segment_bytes = target.generation.segment_bytes
            header.writer = target.writer
            header.pushed_at = datetime.now(UTC)
            raw = WalContent(bytes(piece), index, target.archive.identity.raw_key())
            reached("receive.tail")
            writer = WalObjectWriter(header, raw, self._encode)
            if not writer.write(target.archive.store, key) and not _is_stored(target, key, header):
                WalObjectWriter(header, raw, self._encode).write(target.archive.store, key)
            reached("receive.tail-stored")


def store_file(landing: Landing, directory: str, name: str) -> None:
    """Store one file of the spool and remove it there; raises as Landing.store."""
    path = f"{directory}/{name}"
    if name.endswith(TAIL_SUFFIX):
        with padded_file(path, os.stat(path).st_size) as padded:
            landing.store_tail(name.removesuffix(TAIL_SUFFIX), *padded)
    else:
        landing.store(path)
        reached("receive.stored")
        if WalFile(name).kind == SEGMENT:
            landing.drop_tails(name)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    reached("receive.unlinked")


@contextlib.contextmanager
def padded_file(path: str, size: int) -> Iterator[tuple[memoryview, int]]:
    """The first ``size`` bytes of a segment's file, with zeros up to the segment's length.

    Takes memory for the bytes alone: nobody touches the pages of zeros. Raises
    FileNotFoundError, WalFormatError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        segment_bytes = read_segment_header(os.pread(descriptor, 64, 0)).segment_bytes
        # Not closed by hand: an error's traceback may still hold on to a part of it.
        view = memoryview(mmap.mmap(-1, segment_bytes))
        done = 0
        while done < size:
            got = os.preadv(descriptor, [view[done:size]], done)
            if not got:
                raise WalFormatError(f"{path} ends at byte {done}, before {size}")
            done += got
        yield view, size
    finally:
        os.close(descriptor)


def _drop_shorter(target: Target, segment: str, end: int) -> None:
    """Remove pieces that a longer one with the same beginning has taken the place of."""
    store = target.archive.store
    found = pieces_of(store, target.server, target.generation, segment)
    for start, stop in found:
        if any(other == start and stop < further <= end for other, further in found):
            _drop(target, segment, start, stop)


def _drop_all(target: Target, segment: str) -> None:
    store = target.archive.store
    for start, stop in pieces_of(store, target.server, target.generation, segment):
        _drop(target, segment, start, stop)


def _drop(target: Target, segment: str, start: int, stop: int) -> None:
    name = layout.tail_name(start, stop)
    target.archive.store.delete(
        layout.tail_key(target.server, target.generation.number, segment, name)
    )


def _is_stored(target: Target, key: str, header: WalHeader) -> bool:
    """True when the key holds the same bytes; False: it held damage, and is free now.

    A tail may be removed, and a damaged one is of no use. Raises WalConflictError
    when it holds other bytes: those stay.
    """
    store = target.archive.store
    try:
        with WalObjectReader(store, key, target.archive.identity.raw_key()) as opened:
            stored = opened.header
            opened.verify()
    except ObjectMissingError:
        return False
    except CorruptObjectError as error:
        _log.warning("removed: %s", error.message)
        store.delete(key)
        return False
    if stored.same_content(header):
        return True
    raise WalConflictError(
        f"{store.name} already holds {key} with other content. Nothing was replaced.",
        hint="two servers write this timeline: stop the wrong one",
    )
