"""Decide what a dump holds and how it is made; pure."""

from __future__ import annotations

import msgspec

from pgrecall.dump.arguments import METHODS_BY_NAME_SINCE, NONE, Compression
from pgrecall.errors import PostgresRightsError, UsageError
from pgrecall.model.dumps import DumpContent, DumpFormat, Scope
from pgrecall.model.findings import Finding
from pgrecall.postgres.client_tools import ClientTools
from pgrecall.postgres.dump_session import DatabaseFacts, DumpFacts

_TEMPLATE0 = "template0"


class DumpWishes(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. ``databases`` empty: all. ``passwords`` None: as the repository allows.

    ``tool_compression`` None: nobody said. ``free_bytes``: of the spool directory, where one is
    needed; -1: not asked.
    """

    server: str
    repository: str
    scope: Scope
    databases: tuple[str, ...]
    dump_format: DumpFormat
    content: DumpContent
    jobs: int
    compression: str
    level: int
    is_encrypted: bool
    with_globals: bool = True
    with_proofs: bool = False
    passwords: bool | None = None
    tool_compression: Compression | None = None
    spool_directory: str = ""
    free_bytes: int = -1


class PlannedDatabase(msgspec.Struct, frozen=True):
    """A database that is dumped, with its size on the server."""

    name: str
    size_bytes: int


class DumpPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``dump`` does. ``tool_compression``: what pg_dump compresses with itself.

    ``compression``: of what is stored. ``left_out``: databases that are not dumped, and why.
    """

    server: str
    repository: str
    scope: Scope
    dump_format: DumpFormat
    databases: tuple[PlannedDatabase, ...]
    total_bytes: int
    with_globals: bool
    with_passwords: bool
    with_proofs: bool
    content: DumpContent
    jobs: int
    compression: str
    level: int
    tool: str
    tool_compression: Compression
    spool_directory: str = ""
    reasons: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def plan_dump(wishes: DumpWishes, facts: DumpFacts, tools: ClientTools) -> DumpPlan:
    """Decide; raises UsageError, PostgresRightsError."""
    _refuse_contradictions(wishes)
    databases, left_out = _databases(wishes, facts)
    findings: list[Finding] = []
    with_globals = wishes.with_globals or wishes.scope != "databases"
    with_passwords = with_globals and _passwords(wishes, facts, findings)
    compression = _tool_compression(wishes, tools)
    total = sum(max(0, one.size_bytes) for one in databases)
    if wishes.dump_format == "directory" and 0 <= wishes.free_bytes < total:
        findings.append(
            Finding(
                severity="warn",
                code="spool-small",
                subject=wishes.spool_directory,
                message=f"it has {wishes.free_bytes} bytes free, and the databases have {total}:"
                " a dump of format directory may not fit",
                hint="set dump.spool_directory to a larger place, or use the format custom, which"
                " needs none",
            )
        )
    return DumpPlan(
        server=wishes.server,
        repository=wishes.repository,
        scope=wishes.scope,
        dump_format=wishes.dump_format,
        databases=tuple(PlannedDatabase(one.name, one.size_bytes) for one in databases),
        total_bytes=total,
        with_globals=with_globals,
        with_passwords=with_passwords,
        with_proofs=wishes.with_proofs,
        content=wishes.content,
        jobs=wishes.jobs,
        compression=wishes.compression,
        level=wishes.level,
        tool=f"pg_dump {tools.version} ({tools.directory})",
        tool_compression=compression,
        spool_directory=wishes.spool_directory if wishes.dump_format == "directory" else "",
        reasons=(f"{tools.version}: {tools.why}",),
        left_out=tuple(left_out),
        findings=tuple(findings),
    )


def _refuse_contradictions(wishes: DumpWishes) -> None:
    content = wishes.content
    if content.schema_only and (content.data_only or content.large_objects == "only"):
        raise UsageError("--schema-only and --data-only leave nothing", hint="give one of them")
    if wishes.scope == "globals" and (wishes.databases or not content.is_whole):
        raise UsageError(
            "--globals-only dumps roles and tablespaces, and nothing of a database",
            hint="leave the databases and their options out",
        )
    if wishes.with_proofs and (wishes.scope != "databases" or not content.is_whole):
        raise UsageError(
            "--proofs are of whole databases",
            hint="leave --proofs out, or the options that choose a part",
        )
    if wishes.scope == "cluster":
        if wishes.dump_format != "plain":
            raise UsageError(
                f"--cluster makes one SQL script, and no dump of format {wishes.dump_format}",
                hint="leave --format out; without --cluster all databases are dumped, each in its"
                " own file, and the globals",
            )
        allowed = DumpContent(schema_only=content.schema_only, data_only=content.data_only)
        if wishes.databases or content != allowed:
            raise UsageError(
                "--cluster dumps everything of every database",
                hint="leave the names of databases, tables and schemas out",
            )
    asked = wishes.tool_compression
    if asked is not None and asked.method != "none":
        if wishes.dump_format == "tar":
            raise UsageError(
                "a dump of format tar is never compressed by pg_dump",
                hint="leave --compress out: what is stored is compressed anyway",
            )
        if wishes.scope == "cluster":
            raise UsageError(
                "the script of --cluster is not compressed by pg_dump",
                hint="leave --compress out: what is stored is compressed anyway",
            )


def _databases(wishes: DumpWishes, facts: DumpFacts) -> tuple[list[DatabaseFacts], list[str]]:
    if wishes.scope == "globals":
        return [], []
    if not wishes.databases:
        chosen, left_out = [], []
        for one in facts.databases:
            if one.name == _TEMPLATE0:
                continue
            if not one.allows_connections:
                left_out.append(f"{one.name}: it refuses all connections (ALLOW_CONNECTIONS false)")
            elif not one.may_connect:
                left_out.append(f"{one.name}: the role {facts.role} may not connect to it")
            else:
                chosen.append(one)
        if wishes.scope == "cluster":
            _require_scriptable(chosen, left_out)
        return chosen, left_out
    known = {one.name: one for one in facts.databases}
    found = []
    for name in dict.fromkeys(wishes.databases):
        if name not in known:
            raise UsageError(
                f"the server {wishes.server!r} has no database {name!r}",
                hint="it has " + ", ".join(sorted(known)),
            )
        one = known[name]
        if not one.allows_connections:
            raise _refused(f"{name}: it refuses all connections (ALLOW_CONNECTIONS false)")
        if not one.may_connect:
            raise _refused(f"{name}: the role {facts.role} may not connect to it")
        found.append(one)
    return found, []


def _require_scriptable(chosen: list[DatabaseFacts], left_out: list[str]) -> None:
    if left_out:
        raise _refused(left_out[0])
    for one in chosen:
        if "\n" in one.name or "\r" in one.name:
            raise UsageError(
                f"the name of the database {one.name!r} breaks the line: no script can hold it",
                hint="leave --cluster out, then each database is dumped into a file of its own",
            )


def _refused(problem: str) -> PostgresRightsError:
    return PostgresRightsError(
        f"cannot dump the database {problem}",
        hint="let the role connect (GRANT CONNECT, or ALTER DATABASE ... ALLOW_CONNECTIONS true"
        " for as long as it takes), or leave the database out; a physical backup has it anyway",
    )


def _passwords(wishes: DumpWishes, facts: DumpFacts, findings: list[Finding]) -> bool:
    """Whether the globals have the hashes of passwords: in an encrypted repository, or if told."""
    wanted = wishes.is_encrypted if wishes.passwords is None else wishes.passwords
    if wanted and not facts.can_read_passwords:
        if wishes.passwords:
            raise PostgresRightsError(
                f"the role {facts.role} may not read pg_authid, where the passwords are",
                hint="use a superuser, or leave --with-passwords out",
            )
        why = f"the role {facts.role} may not read them"
    elif not wanted and wishes.passwords is None:
        why = "the repository is not encrypted"
    else:
        return wanted
    findings.append(
        Finding(
            severity="warn",
            code="passwords-left-out",
            message=f"roles are dumped without their passwords: {why}",
            hint="keep dumps in an encrypted repository, or say --with-passwords; to have this"
            " no longer said: --no-passwords",
        )
    )
    return False


def _tool_compression(wishes: DumpWishes, tools: ClientTools) -> Compression:
    asked = wishes.tool_compression
    if asked is not None:
        is_named = asked.method in ("lz4", "zstd")
        if is_named and tools.major < METHODS_BY_NAME_SINCE:
            raise UsageError(
                f"pg_dump {tools.version} knows gzip only, and not {asked.method}",
                hint="leave --compress out: what is stored is compressed with zstd anyway",
            )
        return asked
    if wishes.dump_format == "directory":
        # It lies in the spool directory until it is stored.
        return Compression("gzip", 1)
    return NONE
