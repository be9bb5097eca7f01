"""One repository of a server, opened to take its WAL, and how a file gets into it. Light.

``wal push`` opens it for one file; the pusher of the agent keeps it open, and has
it proven again (``prove``) before each batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from pgrecall.codec.compression import FrameEncoder
from pgrecall.errors import (
    CorruptObjectError,
    IdentityError,
    ObjectMissingError,
    RepositoryError,
    StoreError,
    WalConflictError,
)
from pgrecall.model.timelines import TimelineHistory
from pgrecall.model.wal_files import WalFile, history_name
from pgrecall.repository import layout
from pgrecall.repository.identity import (
    Generation,
    open_repository,
    require_generation,
    require_owner,
)
from pgrecall.repository.records import format_time
from pgrecall.repository.wal_objects import (
    WalContent,
    WalHeader,
    WalObjectReader,
    WalObjectWriter,
)
from pgrecall.settings.collection import Settings
from pgrecall.settings.sections import RepositorySettings
from pgrecall.store.base import Store
from pgrecall.system.faults import reached
from pgrecall.wal.archives import Archive, Question, archive_store, archived_history, parse_history
from pgrecall.wal.outcomes import ALREADY_STORED, CREATED, PushOutcome
from pgrecall.wal.source import LARGEST_SMALL_FILE, Source, unreadable


class Target:
    """A repository that takes the WAL of one system.

    ``generation`` is the system's; ``writer`` the restore id of the copy that
    pushes, None for the original server: it owned the archive when it was proven.
    """

    __slots__ = ("archive", "generation", "server", "writer")

    def __init__(
        self, archive: Archive, server: str, generation: Generation, writer: str | None
    ) -> None:
        self.archive = archive
        self.server = server
        self.generation = generation
        self.writer = writer

    def prove(self, pgdata: str) -> None:
        """Ask again whether this is the same repository and ``pgdata`` owns the archive (fact 2).

        Raises NotOwnerError, RepositoryError (another repository lies there now),
        StoreError.
        """
        store = self.archive.store
        owned = Question(store, lambda: require_owner(store, self.server, pgdata))
        found = open_repository(store)
        self.writer = owned.answer()
        if found.repository_id != self.archive.identity.repository_id:
            raise RepositoryError(
                f"{store.name} holds another repository than it did when it was opened",
                hint="was it made anew, or something else mounted? What was pushed lies elsewhere",
            )

    def holds(self, file: WalFile) -> bool:
        """Whether a file of this name is stored; raises StoreError when that cannot be told."""
        key = layout.wal_key(self.server, self.generation.number, file)
        return self.archive.store.head(key) is not None

    def put(
        self,
        source: Source,
        encode: FrameEncoder,
        before_commit: Callable[[], None] | None = None,
    ) -> PushOutcome:
        """Store the file, or find it stored; durable when this returns.

        ``before_commit`` as in WalObjectWriter.write. Raises IdentityError,
        WalConflictError, CorruptObjectError, StoreError, DataDirectoryError.
        """
        archive, file = self.archive, source.file
        _check_generation(self, source)
        header = WalHeader(file.name, file.kind)
        header.system_identifier = self.generation.system_identifier
        header.segment_bytes = self.generation.segment_bytes
        header.writer = self.writer
        header.pushed_at = datetime.now(UTC)
        index = source.index.to_bytes() if source.index is not None else b""
        content = WalContent(source.raw, index, archive.identity.raw_key())
        key = layout.wal_key(self.server, self.generation.number, file)
        writer = WalObjectWriter(header, content, encode)
        reached("push.put")
        is_created = writer.write(archive.store, key, before_commit)
        reached("push.stored")
        if is_created:
            return PushOutcome(archive.name, CREATED, writer.stored_bytes)
        compare_stored(archive, key, header)
        return PushOutcome(archive.name, ALREADY_STORED)


def target_store(
    settings: Settings, repository: RepositorySettings, environment: Mapping[str, str]
) -> Store:
    """The store of one repository, to write WAL into; nothing is sent yet.

    repository.json is read in any case: that proves an object store to be ours,
    and an empty listing need not ask for it again. Raises SettingsError.
    """
    is_local = repository.store == "local"
    return archive_store(settings, repository, environment, is_anchored=is_local)


def open_target(name: str, store: Store, server: str, source: Source) -> Target:
    """Open a repository for the system of ``source`` and prove that it may write there.

    Raises IdentityError (a strange system), NotOwnerError, RepositoryError, StoreError.
    """
    system_identifier, found_in = source.system()
    known = Question(store, lambda: require_generation(store, server, system_identifier, found_in))
    owned = Question(store, lambda: source.require_owner(store, server))
    archive = Archive(name, store, open_repository(store))
    # What is no file of this system is told so before whose the archive is.
    generation = known.answer()
    check_segment_bytes(archive, server, generation, source)
    return Target(archive, server, generation, owned.answer())


def check_segment_bytes(
    archive: Archive, server: str, generation: Generation, source: Source
) -> None:
    """Raise IdentityError when segments of the generation have another size."""
    header = source.header
    if header is not None and header.segment_bytes != generation.segment_bytes:
        raise IdentityError(
            f"{source.path} is a segment of {header.segment_bytes} bytes; the server {server!r} "
            f"in {archive.store.name} has {generation.segment_bytes}",
            hint="after pg_resetwal --wal-segsize, open a new generation with "
            "`pgrecall server upgrade`",
        )


def _check_generation(target: Target, source: Source) -> None:
    header, file = source.header, source.file
    check_segment_bytes(target.archive, target.server, target.generation, source)
    if header is None or header.timeline == file.timeline:
        return
    history = _history_for(target, source)
    if history is None or not history.is_ancestor_or_self(header.timeline):
        lacks = "no history file here or in the archive" if history is None else "no such ancestor"
        raise IdentityError(
            f"{source.path} begins on timeline {header.timeline}; "
            f"timeline {file.timeline} has {lacks}",
            hint="the first segment after a promotion begins on an ancestor's timeline; this one "
            "belongs to another branch, or its history file is lost",
        )


def _history_for(target: Target, source: Source) -> TimelineHistory | None:
    """The history of the file's timeline: beside it in pg_wal, or archived (fact 1)."""
    timeline = source.file.timeline
    beside = os.path.join(os.path.dirname(source.path), history_name(timeline))
    try:
        with open(beside, "rb") as file:
            return parse_history(timeline, file.read(LARGEST_SMALL_FILE))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise unreadable(beside, error) from error
    try:
        return archived_history(target.archive, target.server, target.generation.number, timeline)
    except ObjectMissingError:
        return None


def compare_stored(archive: Archive, key: str, header: WalHeader) -> None:
    """Accept what is stored under ``key`` if it equals what ``header`` describes (fact 5).

    In a directory header, end and frame table are read: an object that was cut off
    is not taken for the file. Of an object store everything is read and verified:
    a put whose bytes were changed on the way was refused at its first try, and must
    not succeed at the second. Raises WalConflictError (other content),
    CorruptObjectError, StoreError.
    """
    store = archive.store
    raw_key = archive.identity.raw_key()
    try:
        with WalObjectReader(store, key, raw_key, reads_frames=store.reads_whole) as opened:
            stored = opened.header
            if store.reads_whole:
                opened.verify()
    except ObjectMissingError as error:
        raise StoreError(
            f"{key} in {store.name} was taken when {header.name} was put, and is gone now",
            hint="something else deletes in this repository",
        ) from error
    except CorruptObjectError as error:
        raise CorruptObjectError(
            f"what is stored under the name {header.name} is damaged, and was not replaced: "
            f"{error.message}",
            hint=f"move {key} out of the repository; the next push stores the file again",
        ) from error
    if stored.same_content(header) and stored.name == header.name:
        return
    when = format_time(stored.pushed_at) if stored.pushed_at is not None else "an unknown time"
    raise WalConflictError(
        f"{store.name} already holds {header.name} with other content: pushed at {when} by "
        f"{_who(stored.writer)}, {stored.raw_bytes} bytes, system {stored.system_identifier}; "
        f"now {_who(header.writer)} brings {header.raw_bytes} bytes, system "
        f"{header.system_identifier}. Nothing was replaced.",
        hint="two servers write this timeline (a copy that was promoted, an old primary that came "
        "back): stop the wrong one. If it is this one, set archive_mode = off here. If this one "
        "is right, promote it to a new timeline and take a backup at once",
    )


def _who(writer: str | None) -> str:
    return "the original server" if writer is None else f"the restored copy {writer}"
