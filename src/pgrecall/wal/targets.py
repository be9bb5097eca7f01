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
from pgrecall.repository.branches import archived_timelines
from pgrecall.repository.identity import (
    Generation,
    generation_numbers,
    open_repository,
    require_generation,
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
from pgrecall.wal.former_primary import Forks, judged_timeline
from pgrecall.wal.outcomes import ALREADY_STORED, CREATED, PushOutcome
from pgrecall.wal.source import LARGEST_SMALL_FILE, Source, unreadable

PROOF_SECONDS = 1.0
"""No write begins later than so long after the last proof: of who owns the archive (fact 2), and
of where the server's timeline was left."""


class Target:
    """A repository that takes the WAL of one system.

    ``generation`` is the system's; ``writer`` the restore id of the copy that
    pushes, None for the original server: it owned the archive when it was proven.
    ``forks`` None: a former primary is not looked for (streamed WAL, best effort).
    """

    __slots__ = ("archive", "forks", "generation", "server", "writer")

    def __init__(
        self, archive: Archive, server: str, generation: Generation, writer: str | None
    ) -> None:
        self.archive = archive
        self.server = server
        self.generation = generation
        self.writer = writer
        self.forks: Forks | None = None

    def prove(self, source: Source) -> None:
        """Ask again what may have changed since the repository was opened.

        Whether it is the same one, whether the server of ``source`` owns the archive
        (fact 2), and where its timeline was left. Raises NotOwnerError, RepositoryError
        (another repository lies there now), CorruptObjectError, StoreError.
        """
        store = self.archive.store
        owned = Question(store, lambda: source.require_owner(store, self.server))
        left = Question(store, lambda: self._ask_forks(source))
        found = open_repository(store)
        self.writer = owned.answer()
        if found.repository_id != self.archive.identity.repository_id:
            raise RepositoryError(
                f"{store.name} holds another repository than it did when it was opened",
                hint="was it made anew, or something else mounted? What was pushed lies elsewhere",
            )
        left.answer()

    def _ask_forks(self, source: Source) -> None:
        if self.forks is not None:
            self.forks.ask(source.control.primary_timeline if source.control is not None else None)

    def holds(self, file: WalFile) -> bool:
        """Whether a file of this name is stored; raises StoreError when that cannot be told."""
        key = layout.wal_key(self.server, self.generation.number, file)
        return self.archive.store.head(key) is not None

    def goes_beyond_fork(self, source: Source) -> bool:
        """Whether a primary has written the file beyond a fork: then it can only be found stored.

        Raises FormerPrimaryError when it is not stored; StoreError, CorruptObjectError.
        """
        fork = self.forks.passed_by(source) if self.forks is not None else None
        if self.forks is None or fork is None:
            return False
        if not self.holds(source.file):
            raise self.forks.refusal(source, fork)
        return True

    def put(
        self,
        source: Source,
        encode: FrameEncoder,
        before_commit: Callable[[], None] | None = None,
    ) -> PushOutcome:
        """Store the file, or find it stored; durable when this returns.

        ``before_commit`` as in WalObjectWriter.write. Raises IdentityError,
        FormerPrimaryError, WalConflictError, CorruptObjectError, StoreError,
        DataDirectoryError.
        """
        archive, file = self.archive, source.file
        _check_generation(self, source)
        may_be_stored = not self.goes_beyond_fork(source)
        header = WalHeader(file.name, file.kind)
        header.system_identifier = self.generation.system_identifier
        header.segment_bytes = self.generation.segment_bytes
        header.writer = self.writer
        header.pushed_at = datetime.now(UTC)
        index = source.index.to_bytes() if source.index is not None else b""
        content = WalContent(source.raw, index, archive.identity.raw_key())
        key = layout.wal_key(self.server, self.generation.number, file)
        writer = WalObjectWriter(header, content, encode)
        if may_be_stored:
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


def open_target(
    repository: RepositorySettings, store: Store, server: str, source: Source
) -> Target:
    """Open a repository for the system of ``source`` and prove that it may write there.

    A required one is asked as well where the server's timeline was left. Raises
    IdentityError (a strange system), NotOwnerError, RepositoryError, CorruptObjectError,
    StoreError.
    """
    is_required = repository.role == "required"
    asking = _Asking(store, server, source, judged_timeline(source) if is_required else None)
    known = Question(store, asking.generation)
    owned = Question(store, lambda: source.require_owner(store, server))
    archive = Archive(repository.name, store, open_repository(store))
    # What is no file of this system is told so before whose the archive is.
    generation = known.answer()
    check_segment_bytes(archive, server, generation, source)
    target = Target(archive, server, generation, owned.answer())
    if is_required:
        target.forks = Forks(archive, server, generation.number)
        if asking.timeline is not None:
            target.forks.ask(asking.timeline, asking.timelines_of(generation))
    return target


class _Asking:
    """Asks for the generation, and for its timelines while its record is still being read.

    So no push waits longer for the question after forks: the newest generation is nearly
    always the one. ``timeline`` None: forks do not matter.
    """

    def __init__(self, store: Store, server: str, source: Source, timeline: int | None) -> None:
        self.timeline = timeline
        self._store = store
        self._server = server
        self._system = source.system()
        self._newest = 0
        self._listed: Question[list[int]] | None = None

    def generation(self) -> Generation:
        """The generation of the source's system; raises IdentityError, StoreError."""
        store, server = self._store, self._server
        numbers = generation_numbers(store, server)
        if numbers and self.timeline is not None:
            newest = self._newest = numbers[-1]
            self._listed = Question(store, lambda: archived_timelines(store, server, newest))
        return require_generation(store, server, *self._system, numbers)

    def timelines_of(self, generation: Generation) -> list[int] | None:
        """The timelines of ``generation``; None when those of another one were listed."""
        if self._listed is None or generation.number != self._newest:
            return None
        return self._listed.answer()


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
