"""What a dump holds: the completion record, the manifest's root, and what was asked for.

All of them are stored records (docs/format.md). What the tools wrote are the files of the
manifest, listed as those of a backup: ``globals.sql``, ``cluster.sql``, and one file or
directory for each database.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

import msgspec

from pgrecall.model.findings import Finding
from pgrecall.model.manifest import FORMAT_VERSION, PartEntry
from pgrecall.model.runs import ChainHead

DumpFormat = Literal["plain", "custom", "directory", "tar"]
Scope = Literal["databases", "globals", "cluster"]
LargeObjects = Literal["default", "with", "without", "only"]

GLOBALS = "globals.sql"
CLUSTER = "cluster.sql"


class DumpContent(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a database is dumped; patterns are those of pg_dump."""

    schema_only: bool = False
    data_only: bool = False
    tables: tuple[str, ...] = ()
    exclude_tables: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()
    exclude_schemas: tuple[str, ...] = ()
    exclude_table_data: tuple[str, ...] = ()
    large_objects: LargeObjects = "default"

    @property
    def is_whole(self) -> bool:
        """Whether nothing was left out."""
        return self == DumpContent()


class TableSize(msgspec.Struct, frozen=True, array_like=True):
    """A table under the dump's snapshot: the server's estimate of its rows (-1: none), its bytes.

    ``bytes`` are those of its main fork, in TOAST too; indexes are not counted.
    """

    schema: str
    name: str
    rows: int
    bytes: int


class TableProof(msgspec.Struct, frozen=True, array_like=True):
    """What is in a table under the dump's snapshot: its rows, and the sum of their hashes (text).

    The hash is that of PostgreSQL's hashtextextended over the row as text; the order of rows
    makes no difference.
    """

    schema: str
    name: str
    rows: int
    hash_sum: str


class DatabaseProperties(msgspec.Struct, frozen=True, kw_only=True):
    """What CREATE DATABASE and ALTER DATABASE need to make it again.

    ``settings`` are those of ALTER DATABASE, and with a role's name those of ALTER ROLE IN
    DATABASE: (role or empty, name, value). ``roles``: every role that owns something in it or
    has a right there.
    """

    owner: str
    encoding: str
    collate: str
    ctype: str
    provider: str
    locale: str
    icu_rules: str = ""
    connection_limit: int = -1
    is_template: bool = False
    comment: str = ""
    tablespace: str = ""
    acl: tuple[str, ...] = ()
    settings: tuple[tuple[str, str, str], ...] = ()
    roles: tuple[str, ...] = ()

    def with_roles(self, role_map: Mapping[str, str]) -> DatabaseProperties:
        """The same with other roles in the place of some; ``acl`` stays, see load_target.py."""
        return msgspec.structs.replace(
            self,
            owner=role_map.get(self.owner, self.owner),
            settings=tuple(
                (role_map.get(role, role), name, value) for role, name, value in self.settings
            ),
            roles=tuple(dict.fromkeys(role_map.get(role, role) for role in self.roles)),
        )


class DumpedDatabase(msgspec.Struct, frozen=True, kw_only=True):
    """One database of a dump. ``path``: its file, or with a slash at its end its directory.

    ``snapshot_lsn`` (text) and ``snapshot_at`` (the server's clock): everything that was committed
    by then is in the dump, and nothing else. ``size_bytes``: of the database on the server;
    ``raw_bytes``: what the tool wrote. ``tables``: the largest first. ``proofs``
    only where they were asked for.
    """

    name: str
    path: str
    oid: int
    size_bytes: int
    raw_bytes: int
    snapshot_lsn: str
    snapshot_at: datetime
    large_objects: int
    properties: DatabaseProperties
    tables: tuple[TableSize, ...] = ()
    proofs: tuple[TableProof, ...] = ()


class DumpRoot(msgspec.Struct, frozen=True, kw_only=True):
    """The head of a dump's manifest; ``parts`` list its packs and files. ``backup_id``: its own."""

    format: int = FORMAT_VERSION
    backup_id: str
    repository_id: str
    digest: str
    suite: str = "none"
    databases: tuple[DumpedDatabase, ...] = ()
    findings: tuple[Finding, ...] = ()
    parts: tuple[PartEntry, ...] = ()


class DumpTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Counts and bytes: what the tools wrote (raw), and the objects that hold it (stored)."""

    files: int
    raw_bytes: int
    stored_bytes: int
    packs: int


class DumpCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The record that makes a dump exist; written last.

    ``snapshot_at`` is that of the newest database, by the server's clock. ``has_passwords``:
    whether the globals hold the hashes of the roles' passwords. ``bootstrap_role``: the superuser
    that initdb made, who has granted roles to others. ``tool``: which pg_dump.
    """

    format: int = FORMAT_VERSION
    kind: Literal["dump"] = "dump"
    backup_id: str
    repository_id: str
    server: str
    generation: int
    system_identifier: str
    version_num: int
    scope: Scope
    dump_format: DumpFormat
    content: DumpContent
    databases: tuple[str, ...]
    bootstrap_role: str
    has_globals: bool
    has_passwords: bool
    has_proofs: bool = False
    snapshot_at: datetime
    snapshot_lsn: str
    started_at: datetime
    completed_at: datetime
    duration_seconds: float
    tool: str
    tool_compression: str
    compression: str
    totals: DumpTotals
    manifest_bytes: int
    manifest_digest: str
    worst: str = "ok"
    finding_count: int = 0
    tool_version: str = ""
    run_heads: tuple[ChainHead, ...] = ()

    @property
    def server_major(self) -> int:
        """Major version of the server that was dumped."""
        return self.version_num // 10_000

    @property
    def tool_major(self) -> int:
        """Major version of pg_dump; an older pg_restore cannot read what it wrote."""
        return int(self.tool.partition(".")[0])


class LoadChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a dump is loaded, and how; patterns and names as of pg_restore.

    ``role_map``: who stands in the place of which role of the dump.
    """

    schema_only: bool = False
    data_only: bool = False
    sections: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()
    exclude_schemas: tuple[str, ...] = ()
    only_large_objects: bool = False
    clean: bool = False
    no_owner: bool = False
    no_privileges: bool = False
    no_tablespaces: bool = False
    disable_triggers: bool = False
    single_transaction: bool = False
    goes_on: bool = False
    role_map: dict[str, str] = {}

    @property
    def is_partial(self) -> bool:
        """Whether something of the dump is left out."""
        return bool(
            self.schema_only
            or self.data_only
            or self.sections
            or self.tables
            or self.schemas
            or self.exclude_schemas
            or self.only_large_objects
        )
