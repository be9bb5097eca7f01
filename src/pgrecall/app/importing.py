"""``import``: WAL that others have archived, into the archive of a server."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.leasing import using
from pgrecall.app.opened import OpenedRepository, main_repository
from pgrecall.codec.wal_scan import read_segment_header
from pgrecall.errors import PgrecallError, UsageError
from pgrecall.exchange.wal_files import ForeignWal, Found, find_wal, plain, remove_spool
from pgrecall.further_errors import ImportRefusedError
from pgrecall.model.findings import Finding
from pgrecall.model.runs import RunFacts
from pgrecall.model.wal_files import PARTIAL, SEGMENT, WalFile
from pgrecall.repository.identity import Generation, latest_generation, require_generation
from pgrecall.store.base import Buffer
from pgrecall.system.faults import reached
from pgrecall.wal.outcomes import CREATED
from pgrecall.wal.push import push_file
from pgrecall.wal.source import Origin, check_source
from pgrecall.wal.source import opened as opened_file

_MOST_NAMED = 10


class ImportPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``import`` takes in. ``left_alone``: files that are no WAL, the first of them."""

    server: str
    source: str
    generation: int
    files: int
    first: str
    last: str
    total_bytes: int
    others: int = 0
    left_alone: tuple[str, ...] = ()


class ImportResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``import`` prints; ``already_stored``: files that the archive had already."""

    plan: ImportPlan
    created: int = 0
    already_stored: int = 0
    findings: tuple[Finding, ...] = ()
    next_steps: tuple[str, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        return RunFacts(raw_bytes=self.plan.total_bytes)


def run_import(context: RunContext, path: str) -> ImportResult:
    """Take WAL in, as if the server had pushed it; what is there already is not stored twice.

    Every file is checked before the first one is stored: its name, size and page header, and
    that it is of this server. Raises ImportRefusedError, which names those that are not,
    IdentityError, UsageError, WalConflictError (other content under a name; what was stored
    before stays), StoreError.
    """
    repository = main_repository(context)
    with _spool(context) as spool:
        found = find_wal(path, spool / "tar")
        if not found.files:
            raise UsageError(
                f"{path} holds no WAL" + (f", but {found.others[0]}" if found.others else ""),
                hint="a dump is loaded from where it lies: pgrecall load PATH --into DATABASE;"
                " base backups of others cannot be imported",
            )
        task = _Import(context, repository, found, spool)
        plan = task.plan(path)
        if not context.approve(plan):
            return ImportResult(plan=plan)
        try:
            with using(context, repository, "backup"):
                created = task.store()
        finally:
            context.progress.done()
    return ImportResult(
        plan=plan,
        created=created,
        already_stored=len(found.files) - created,
        next_steps=("what can be reached with it: pgrecall recoverable",),
    )


class _Import:
    def __init__(
        self, context: RunContext, repository: OpenedRepository, found: Found, spool: Path
    ) -> None:
        self._context = context
        self._repository = repository
        self._found = found
        self._spool = spool
        self._origin: Origin | None = None
        self._generation: Generation | None = None

    def plan(self, path: str) -> ImportPlan:
        """Check every file; raises ImportRefusedError, IdentityError."""
        context, found = self._context, self._found
        context.progress.phase("check")
        context.progress.start(found.stored_bytes)
        refused: list[str] = []
        for file in found.files:
            try:
                self._check(file)
            except PgrecallError as error:
                refused.append(error.message)
            context.progress.advance(Path(file.path).stat().st_size)
        context.progress.done()
        if refused:
            raise ImportRefusedError(
                f"{len(refused)} of {len(found.files)} files are not what they should be, and"
                " nothing was imported: " + "; ".join(refused[:_MOST_NAMED]),
                hint="move those files away, or bring whole ones, and import again",
            )
        generation = self._generation or self._latest()
        return ImportPlan(
            server=context.server.name,
            source=path,
            generation=generation.number,
            files=len(found.files),
            first=found.files[0].name,
            last=found.files[-1].name,
            total_bytes=found.stored_bytes,
            others=len(found.others),
            left_alone=found.others[:_MOST_NAMED],
        )

    def store(self) -> int:
        """Push everything; how many files the archive lacked."""
        context, created = self._context, 0
        origin = self._origin or Origin(self._latest().system_identifier, "what is imported")
        context.progress.phase("import")
        context.progress.start(self._found.stored_bytes)
        for file in self._found.files:
            with plain(file, self._spool) as path:
                result = push_file(
                    context.settings,
                    context.server,
                    path,
                    pgdata="",
                    environment=context.environment,
                    origin=origin,
                )
            created += result.outcome == CREATED
            context.progress.advance(Path(file.path).stat().st_size)
            reached("import.file")
        return created

    def _check(self, file: ForeignWal) -> None:
        parsed = WalFile(file.name)
        with plain(file, self._spool) as path, opened_file(path, parsed) as raw:
            origin = self._origin or Origin(0, "what is imported")
            if parsed.kind not in (SEGMENT, PARTIAL):
                check_source(parsed, path, raw, ("", None), origin)
                return
            if self._origin is None:
                self._origin = self._origin_of(parsed, path, raw)
            check_source(parsed, path, raw, ("", None), self._origin)

    def _origin_of(self, parsed: WalFile, path: str, raw: Buffer) -> Origin:
        """Whose WAL it is, by its first segment: it must be this server's."""
        name = self._context.server.name
        header = read_segment_header(raw[:64])
        self._generation = require_generation(
            self._repository.store, name, header.system_identifier, f"{parsed.name} ({path})"
        )
        return Origin(header.system_identifier, f"the server {name!r}")

    def _latest(self) -> Generation:
        generation = latest_generation(self._repository.store, self._context.server.name)
        if generation is None:
            raise UsageError(
                f"the repository does not know the server {self._context.server.name!r}",
                hint="pgrecall init makes it known",
            )
        return generation


@contextmanager
def _spool(context: RunContext) -> Iterator[Path]:
    """Where packed files are unpacked, one at a time; those of a tar archive all."""
    directory = context.settings.dump.spool_directory or None
    spool = Path(tempfile.mkdtemp(prefix="pgrecall-import-", dir=directory))
    (spool / "tar").mkdir()
    try:
        yield spool
    finally:
        remove_spool(spool)
