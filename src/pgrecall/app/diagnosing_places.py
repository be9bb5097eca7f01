"""What doctor looks at besides the other commands: dumps, disks, recoveries; how programs run."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator

from pgrecall.app.context import RunContext
from pgrecall.app.invocation_path import pgrecall_command
from pgrecall.app.opened import main_repository
from pgrecall.app.restore_commands import restore_command_of
from pgrecall.doctor.facts import DumpLook, Place, Recovering
from pgrecall.doctor.words import Words
from pgrecall.errors import DataDirectoryError, ToolMissingError
from pgrecall.model.dumps import DumpCompletion, DumpContent
from pgrecall.postgres.configured import configured_value
from pgrecall.postgres.discovery import major_version, owner_name
from pgrecall.postgres.instance import running_postmaster
from pgrecall.postgres.tools import find_bin_directory, find_program
from pgrecall.repository.dump_catalog import DumpCatalog
from pgrecall.settings import ServerSettings
from pgrecall.wal.commands import archive_command, restore_command

_SIGNALS = ("standby.signal", "recovery.signal")


def words_of(context: RunContext, *, directory: str, superuser: str) -> Words:
    """How programs are called for the chosen server. ``directory``: its PGDATA, or empty."""
    server = context.server
    config = _config(context)
    pgrecall = pgrecall_command()
    named = ["--config", config] if config else []
    is_here = bool(directory) and os.path.isdir(directory)
    return Words(
        pgrecall=(*pgrecall, *named, "--server", server.name),
        psql=tuple(_psql(server, superuser)),
        server=server.name,
        role=server.user or superuser,
        archive_command=archive_command(pgrecall, config, server.name),
        data_directory=directory if is_here else "",
        pg_ctl=_program(server, directory, "pg_ctl") if is_here else "",
        pg_checksums=_program(server, directory, "pg_checksums") if is_here else "",
        owner=_other_owner(directory) if is_here else "",
    )


def places_of(directory: str) -> list[Place]:
    """The file systems of PGDATA and pg_wal; none where PGDATA is on another host."""
    found = []
    for what, path in (("PGDATA", directory), ("pg_wal", f"{directory}/pg_wal")):
        if not os.path.isdir(directory):
            continue
        about = os.statvfs(path)
        found.append(
            Place(
                what=what,
                path=path,
                free_bytes=about.f_bavail * about.f_frsize,
                total_bytes=about.f_blocks * about.f_frsize,
            )
        )
    return found


def recovering_of(context: RunContext, path: str) -> list[Recovering]:
    """A data directory that is in recovery, or will be when it is started; none if it is not.

    Raises DataDirectoryError, ToolMissingError.
    """
    if not os.path.isdir(path):
        if path in (context.server.data_directory, ""):
            return []  # on another host: the check says so
        raise DataDirectoryError(
            f"{path} is no directory", hint="name the data directory that does not come up"
        )
    signal = next((name for name in _SIGNALS if os.path.exists(f"{path}/{name}")), "")
    if not signal:
        return []
    server = context.server
    programs = find_bin_directory(
        major_version(path), configured=server.bin_directory, data_directory=path
    )
    command = configured_value(str(find_program(programs, "postgres")), path, "restore_command")
    is_standby = signal == "standby.signal"
    pgrecall, config = pgrecall_command(), _config(context)
    wanted = (
        restore_command_of(context.settings, server, standby=is_standby),
        restore_command(pgrecall, config, server.name, standby=is_standby),
    )
    return [
        Recovering(
            path=path,
            signal=signal,
            restore_command=command,
            wanted=wanted,
            is_running=running_postmaster(path) is not None,
            missing_program=_missing(command, path),
        )
    ]


def dump_looks(context: RunContext) -> list[DumpLook]:
    """The newest dump of each database, behind an older one that has its large objects.

    Reads one manifest for each database whose newest dump has left them out.
    """
    opened = main_repository(context)
    catalog = DumpCatalog(opened.store, context.server.name)
    complete, _ = catalog.survey()
    newest: dict[str, DumpCompletion] = {}
    keeper: dict[str, DumpCompletion] = {}
    for dump in complete:
        if dump.scope == "globals" or dump.content.schema_only:
            continue
        for name in dump.databases:
            newest[name] = dump
            if not _leaves_out(dump.content):
                keeper[name] = dump
    found = [_look(dump, name, 0) for name, dump in keeper.items()]
    for name, dump in newest.items():
        if _leaves_out(dump.content):
            databases = catalog.manifest(dump).root.databases
            count = sum(one.large_objects for one in databases if one.name == name)
            found.append(_look(dump, name, count))
    return found


def _look(dump: DumpCompletion, database: str, large_objects: int) -> DumpLook:
    left_out_by = _leaves_out(dump.content)
    return DumpLook(
        dump_id=dump.backup_id,
        database=database,
        large_objects=large_objects,
        has_them=not left_out_by,
        left_out_by=left_out_by,
    )


def _leaves_out(content: DumpContent) -> str:
    """Why a dump has no large objects (pg_dump, "--large-objects"); empty: it has them."""
    if content.large_objects == "without":
        return "--no-large-objects was given"
    if content.large_objects == "default" and (content.tables or content.schemas):
        return "tables or schemas were named, and --large-objects was not given"
    return ""


def _other_owner(directory: str) -> str:
    """Who owns it; empty when that is this process's own user, or cannot be told."""
    try:
        is_own = os.stat(directory).st_uid == os.geteuid()
    except OSError:
        return ""
    return "" if is_own else owner_name(directory)


def _config(context: RunContext) -> str:
    return os.path.abspath(context.settings.path) if context.settings.path else ""


def _psql(server: ServerSettings, superuser: str) -> Iterator[str]:
    own = os.path.join(server.bin_directory, "psql") if server.bin_directory else ""
    yield own if own and os.access(own, os.X_OK) else "psql"
    yield "-X"
    if server.host:
        yield from ("-h", server.host)
    yield from ("-p", str(server.port))
    if superuser or server.user:
        yield from ("-U", superuser or server.user)
    yield from ("-d", server.database)


def _program(server: ServerSettings, directory: str, name: str) -> str:
    """Its path; empty when it is not on this host: then there is no command, but advice."""
    try:
        programs = find_bin_directory(
            major_version(directory), configured=server.bin_directory, data_directory=directory
        )
        return str(find_program(programs, name))
    except (DataDirectoryError, ToolMissingError):
        return ""


def _missing(command: str, directory: str) -> str:
    """The program of a shell command, when it is nowhere to be found."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""  # the shell says it better
    if not words:
        return ""
    is_there = shutil.which(words[0], path=None) or shutil.which(os.path.join(directory, words[0]))
    return "" if is_there else words[0]
