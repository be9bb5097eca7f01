"""What a capture holds: configuration and metadata of a server at one moment."""

from __future__ import annotations

from datetime import datetime

import msgspec

from pgrecall.model.findings import Finding
from pgrecall.model.manifest import FORMAT_VERSION


class CapturedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration file. Bytes that are not UTF-8 are kept as surrogate escapes in ``\\xNN``."""

    path: str
    content: str


class CapturedSetting(msgspec.Struct, frozen=True, kw_only=True):
    """A setting that is not at its default; ``is_pending``: in effect after a restart only."""

    name: str
    value: str
    source: str
    is_pending: bool = False
    is_withheld: bool = False


class ScopedSetting(msgspec.Struct, frozen=True, kw_only=True):
    """A setting of a role, of a database, or of a role in a database; empty: of all."""

    database: str
    role: str
    name: str
    value: str
    is_withheld: bool = False


class CapturedDatabase(msgspec.Struct, frozen=True, kw_only=True):
    """A database. ``locale_provider``: c, i or b, as pg_database says (empty before 15)."""

    name: str
    owner: str
    encoding: str
    collation: str
    character_type: str
    locale_provider: str = ""
    tablespace: str = ""
    allows_connections: bool = True
    connection_limit: int = -1


class CapturedExtension(msgspec.Struct, frozen=True, kw_only=True):
    """An extension of the database that pgrecall connects to."""

    database: str
    name: str
    version: str
    schema: str


class CapturedRole(msgspec.Struct, frozen=True, kw_only=True):
    """A role; ``password``: its hash, only in an encrypted repository."""

    name: str
    attributes: tuple[str, ...] = ()
    member_of: tuple[str, ...] = ()
    connection_limit: int = -1
    valid_until: str = ""
    password: str = ""


class CapturedTablespace(msgspec.Struct, frozen=True, kw_only=True):
    """A tablespace, and the SQL that makes it again."""

    name: str
    owner: str
    location: str
    sql: str


class CapturedSlot(msgspec.Struct, frozen=True, kw_only=True):
    """A replication slot, and the SQL that makes it again (its position is not brought back)."""

    name: str
    kind: str
    plugin: str = ""
    database: str = ""
    two_phase: bool = False
    sql: str


class CapturedPublication(msgspec.Struct, frozen=True, kw_only=True):
    """A publication of the database that pgrecall connects to; ``tables``: quoted names."""

    database: str
    name: str
    owner: str
    all_tables: bool
    tables: tuple[str, ...] = ()


class CapturedSubscription(msgspec.Struct, frozen=True, kw_only=True):
    """A subscription; ``connection``: only in an encrypted repository."""

    database: str
    name: str
    owner: str
    is_enabled: bool
    slot: str
    publications: tuple[str, ...] = ()
    connection: str = ""


class CaptureFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What two captures are compared by. ``findings``: what could not be had, and why."""

    version_num: int
    version: str
    data_checksums: bool
    files: tuple[CapturedFile, ...] = ()
    settings: tuple[CapturedSetting, ...] = ()
    scoped_settings: tuple[ScopedSetting, ...] = ()
    databases: tuple[CapturedDatabase, ...] = ()
    extensions: tuple[CapturedExtension, ...] = ()
    roles: tuple[CapturedRole, ...] = ()
    tablespaces: tuple[CapturedTablespace, ...] = ()
    slots: tuple[CapturedSlot, ...] = ()
    publications: tuple[CapturedPublication, ...] = ()
    subscriptions: tuple[CapturedSubscription, ...] = ()
    findings: tuple[Finding, ...] = ()


class CaptureRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A capture; written once, never changed.

    ``volatile``: what changes by itself (pg_stat_replication, pg_stat_archiver, sizes of
    databases), rows as JSON text by name; it does not make a new capture.
    """

    format: int = FORMAT_VERSION
    capture_id: str
    server: str
    captured_at: datetime
    facts: CaptureFacts
    volatile: dict[str, tuple[str, ...]] = {}
    tool_version: str = ""
