"""``export``: anything that is stored as plain files that need no pgrecall."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.export_parts import BackupPart, CapturePart, DumpPart, ExportPart, WalPart
from pgrecall.app.export_place import SUMS, ExportPlace, Gpg, find_gpg
from pgrecall.app.leasing import using
from pgrecall.app.opened import OpenedRepository, main_repository, newest_archive
from pgrecall.app.requests import ExportRequest
from pgrecall.errors import UsageError, WalFormatError, WalMissingError
from pgrecall.model.dumps import DumpCompletion
from pgrecall.model.findings import Finding
from pgrecall.model.ids import BACKUP, CAPTURE, DUMP, SET, kind_of
from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import Completion
from pgrecall.model.runs import RunFacts
from pgrecall.model.sets import SetRecord
from pgrecall.model.wal_files import WalFile
from pgrecall.repository.capture_log import CaptureLog
from pgrecall.repository.dump_catalog import DumpCatalog
from pgrecall.repository.identity import read_generation
from pgrecall.repository.retention_log import read_state
from pgrecall.repository.set_catalog import SetCatalog
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.store.base import SUITE_NONE

_GUIDE = "RESTORE.md"
_MANIFEST = "backup-manifest.yaml"


class ExportPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``export`` writes, and where. ``encrypted``: what of it gpg encrypts."""

    server: str
    item_id: str
    target: str
    components: tuple[str, ...]
    total_bytes: int
    encrypted: tuple[str, ...] = ()


class ExportItemResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``export`` prints."""

    plan: ExportPlan
    is_exported: bool = False
    findings: tuple[Finding, ...] = ()
    next_steps: tuple[str, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        item = self.plan.item_id
        return RunFacts(backup_id=item if kind_of(item) else "", raw_bytes=self.plan.total_bytes)


class _Item(msgspec.Struct, frozen=True, kw_only=True):
    """What is exported: of whom, of when, in which parts. ``leased``: ids that must stay."""

    item_id: str
    kind: str
    made_at: datetime
    version_num: int
    parts: tuple[ExportPart, ...]
    databases: tuple[str, ...] = ()
    leased: tuple[str, ...] = ()


def run_export(context: RunContext, request: ExportRequest) -> ExportItemResult:
    """Write an item as plain files: into a new or empty directory, or as one tar archive.

    Durable when it returns, and under its name only then. Every byte is checked on its way.
    Secrets are encrypted by gpg, unless the request says plain. When it raises, nothing is left.
    Raises the NotFoundError of the item, UsageError, DestinationError, SpaceError,
    ToolMissingError, WalMissingError, StoreError.
    """
    opened = main_repository(context)
    item = _item(context, opened, request)
    secrets = tuple(part.component for part in item.parts if part.secret)
    gpg: Gpg | None = None
    if secrets and not request.plain_passwords:
        what = " and ".join(dict.fromkeys(part.secret for part in item.parts if part.secret))
        gpg = find_gpg(context, request.passphrase, item.item_id, what)
    stamp = f"{item.made_at.astimezone(UTC):%Y%m%d-%H%M%S}"
    place = ExportPlace(request.to, is_tar=request.is_tar, stamp=stamp)
    total = sum(part.total_bytes for part in item.parts)
    place.check(total)
    plan = ExportPlan(
        server=context.server.name,
        item_id=item.item_id,
        target=str(place.target),
        components=tuple(part.component for part in item.parts),
        total_bytes=total,
        encrypted=secrets if gpg is not None else (),
    )
    if not context.approve(plan):
        return ExportItemResult(plan=plan)
    try:
        context.progress.phase("export")
        context.progress.start(total)
        with (
            using(context, opened, "restore", item.leased),
            place.filled(context.progress, gpg) as files,
        ):
            for part in item.parts:
                part.write(files)
            files.text(_MANIFEST, _manifest(context.server.name, item))
            files.text(_GUIDE, _guide(context.server.name, item, is_encrypted=gpg is not None))
    finally:
        context.progress.done()
    inside = " in it" if request.is_tar else ""
    return ExportItemResult(
        plan=plan,
        is_exported=True,
        next_steps=(f"how it is brought back stands in {_GUIDE}{inside}: {plan.target}",),
    )


# --- what is exported ----------------------------------------------------------------


def _item(context: RunContext, opened: OpenedRepository, request: ExportRequest) -> _Item:
    if request.wal_from:
        return _wal_item(context, opened, request)
    name, kind = context.server.name, kind_of(request.item_id)
    if kind == DUMP:
        return _dump_item(opened, DumpCatalog(opened.store, name).get(request.item_id))
    if kind == BACKUP:
        return _backup_item(context, opened, opened.catalog(name).get(request.item_id))
    if kind == SET:
        return _set_item(context, opened, SetCatalog(opened.store, name).get(request.item_id))
    if kind == CAPTURE:
        capture = CaptureLog(opened.store, name).get(request.item_id)
        return _Item(
            item_id=capture.capture_id,
            kind="configuration",
            made_at=capture.captured_at,
            version_num=capture.facts.version_num,
            parts=(CapturePart(capture, has_secrets=opened.store.suite != SUITE_NONE),),
            leased=(capture.capture_id,),
        )
    raise UsageError(
        f"{request.item_id!r} is not the id of a backup, dump, set or capture",
        hint="'pgrecall backups list', 'dumps list', 'sets list' and 'captures list' show them",
    )


def _dump_item(opened: OpenedRepository, dump: DumpCompletion) -> _Item:
    return _Item(
        item_id=dump.backup_id,
        kind="cluster" if dump.scope == "cluster" else "dump",
        made_at=dump.snapshot_at,
        version_num=dump.version_num,
        parts=(DumpPart(opened, dump.server, dump),),
        databases=dump.databases,
        leased=(dump.backup_id,),
    )


def _backup_item(context: RunContext, opened: OpenedRepository, backup: Completion) -> _Item:
    parts: list[ExportPart] = [BackupPart(context, opened, backup, "")]
    if not backup.has_wal:
        start, end = Lsn.parse(backup.start_lsn), Lsn.parse(backup.stop_lsn)
        archive = _archive(opened, backup.server, backup.generation)
        parts.append(WalPart(archive, backup.timeline, start, end))
    return _Item(
        item_id=backup.backup_id,
        kind="basebackup",
        made_at=backup.stopped_at,
        version_num=backup.version_num,
        parts=tuple(parts),
        leased=(backup.backup_id,),
    )


def _set_item(context: RunContext, opened: OpenedRepository, record: SetRecord) -> _Item:
    name = context.server.name
    capture = CaptureLog(opened.store, name).get(record.capture_id)
    parts: list[ExportPart] = [CapturePart(capture, has_secrets=opened.store.suite != SUITE_NONE)]
    if record.point is not None:
        backup = opened.catalog(name).get(record.backup_id)
        archive = _archive(opened, name, record.generation)
        point = record.point
        start, end = Lsn.parse(point.start_lsn), Lsn.parse(point.lsn)
        parts.append(BackupPart(context, opened, backup, record.set_id))
        parts.append(WalPart(archive, point.timeline, start, end))
    if record.dump_id:
        dump = DumpCatalog(opened.store, name).get(record.dump_id)
        parts.append(DumpPart(opened, name, dump))
    return _Item(
        item_id=record.set_id,
        kind="full",
        made_at=record.made_at,
        version_num=record.version_num,
        parts=tuple(parts),
        databases=record.databases,
        leased=(record.set_id, *record.parts),
    )


def _wal_item(context: RunContext, opened: OpenedRepository, request: ExportRequest) -> _Item:
    archive = newest_archive(opened, context.server.name)
    archive.hide(
        read_state(opened.store, context.server.name).hidden_wal(archive.generation.number)
    )
    timelines = archive.timelines()
    if not timelines:
        raise WalMissingError(f"no WAL of {context.server.name!r} is archived")
    histories = archive.histories()
    newest = max(histories)
    first, timeline = _bound(request.wal_from, archive, newest, is_end=False)
    last, timeline = _bound(request.wal_to, archive, timeline, is_end=True)
    if last <= first:
        raise UsageError(
            f"--wal {request.wal_from}..{request.wal_to} is empty",
            hint="name the first and the last segment, or two LSNs, the lower one first",
        )
    part = WalPart(archive, timeline, first, last)
    return _Item(
        item_id=f"{part.names[0]}..{request.wal_to}",
        kind="wal",
        made_at=datetime.now(UTC),
        version_num=archive.generation.major_version * 10_000,
        parts=(part,),
    )


def _bound(text: str, archive: WalArchive, timeline: int, *, is_end: bool) -> tuple[Lsn, int]:
    """The LSN of a segment's beginning or end, or as it was given; raises UsageError."""
    try:
        if "/" in text:
            return Lsn.parse(text), timeline
        file = WalFile(text)
        start = file.start(archive.segment_bytes)
    except (ValueError, WalFormatError) as error:
        raise UsageError(
            f"{text!r} is neither a segment nor an LSN",
            hint="write 000000010000000000000003 or 0/3000000",
        ) from error
    return Lsn(start + (archive.segment_bytes if is_end else 0)), file.timeline


def _archive(opened: OpenedRepository, server: str, number: int) -> WalArchive:
    archive = WalArchive(opened.store, server, read_generation(opened.store, server, number))
    archive.hide(read_state(opened.store, server).hidden_wal(number))
    return archive


# --- texts ---------------------------------------------------------------------------


def _components(parts: Sequence[ExportPart]) -> Iterator[str]:
    for part in parts:
        yield part.component
        if isinstance(part, CapturePart):
            yield from ("metadata", "slots")


def _manifest(server: str, item: _Item) -> str:
    lines = [
        "backup:",
        f"  timestamp: {item.made_at.astimezone(UTC):%Y%m%d-%H%M%S}",
        '  namespace: ""',
        f"  pod: {_quoted(server)}",
        f"  type: {item.kind}",
        "  components:",
        *(f"    - {name}" for name in _components(item.parts)),
        f"  postgresql_version: {item.version_num // 10_000}.{item.version_num % 10_000}",
        f"  backup_size: {sum(part.total_bytes for part in item.parts)}",
        "  databases:",
        *(f"    - {_quoted(name)}" for name in item.databases),
        f"  backup_id: {item.item_id}",
    ]
    return "\n".join(lines) + "\n"


def _guide(server: str, item: _Item, *, is_encrypted: bool) -> str:
    major = item.version_num // 10_000
    text = (
        f"# {item.item_id} of server {server!r}\n\n"
        f"Of PostgreSQL {major}; everything that was committed by"
        f" {item.made_at:%Y-%m-%d %H:%M:%S %Z} is in it. These commands bring it back with"
        " PostgreSQL's own programs, from this directory.\n"
    )
    for part in item.parts:
        title, said = _section(part, major)
        commands = [
            f"sha256sum --check --quiet {SUMS}",
            *part.commands(is_encrypted=is_encrypted and bool(part.secret)),
        ]
        if isinstance(part, WalPart) and len(item.parts) > 1:
            continue  # the backup's commands use it
        text += f"\n## {title}\n\n{said}\n\n```bash\n" + "\n".join(commands) + "\n```\n"
    return text


def _section(part: ExportPart, major: int) -> tuple[str, str]:
    if isinstance(part, DumpPart):
        return "From the dumps", (
            "On an empty server of that version or a newer one; they connect as libpq's variables"
            " say (PGHOST, PGPORT, PGUSER)."
        )
    if isinstance(part, BackupPart):
        return "From the base backup", (
            f"With PostgreSQL {major}, as the user that is to own the server. Set PGDATA to a"
            " directory that is not there yet; SERVER_OPTIONS may hold options of the server,"
            ' such as "-p 5433".'
        )
    if isinstance(part, WalPart):
        return "WAL", "Plain segments."
    return "Configuration", "Files, and SQL."


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()
