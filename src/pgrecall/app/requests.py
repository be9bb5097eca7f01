"""What the edges (command line, later web and agent) ask the application for.

Empty text and None mean: not given, find out or take the setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

import msgspec

from pgrecall.model.dumps import DumpContent, DumpFormat, LoadChoice, Scope
from pgrecall.model.targets import Action, Latest, RecoveryTarget
from pgrecall.settings.declare import Value


class InitRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``init``: write the configuration file ``config_path`` and make the repository.

    ``server`` and ``repository`` are the names of the tables; ``server_values`` and
    ``repository_values`` are settings by key, given by options; what is missing is
    found out. ``overwrite``: an existing file may be replaced.
    """

    config_path: str
    server: str = "main"
    repository: str = "main"
    server_values: Mapping[str, str | int] = {}
    repository_values: Mapping[str, str | bool | tuple[str, ...]] = {}
    overwrite: bool = False
    dry_run: bool = False


class CheckRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``check``: probe server, archive and repository; ``switch_wal`` False: change nothing."""

    switch_wal: bool = True


class VerifyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``verify``. ``backup_id`` empty: all. ``depth``: presence, stored bytes, or all of it.

    ``resume``: go on where the last one was interrupted.
    """

    backup_id: str = ""
    depth: Literal["fast", "stored", "full"] = "stored"
    resume: bool = False


class CopyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``copy``. ``backup_id`` empty: all. ``source`` and ``target`` are names of repositories."""

    source: str
    target: str
    backup_id: str = ""
    wal_only: bool = False


class RepairRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``repair``. ``backup_id`` empty: all. ``depth``: how deep damage is looked for."""

    backup_id: str = ""
    depth: Literal["fast", "stored", "full"] = "stored"


class BackupRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``backup``; overrides of [backup] are in the settings already. ``full``: not incremental.

    ``source`` empty: as the server's settings say.
    """

    with_wal: bool = False
    source: str = ""
    full: bool = False
    dry_run: bool = False


class DumpRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``dump``; overrides of [dump] are in the settings already. ``databases`` empty: all.

    ``dump_format`` empty: the setting. ``passwords`` None: as the repository allows.
    ``tool_compression``: METHOD or METHOD:LEVEL of pg_dump itself.
    """

    databases: tuple[str, ...] = ()
    scope: Scope = "databases"
    dump_format: DumpFormat | Literal[""] = ""
    content: DumpContent = DumpContent()
    with_globals: bool = True
    with_proofs: bool = False
    passwords: bool | None = None
    tool_compression: str = ""


class DrillRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``drill``; overrides of [drill] are in the settings already. ``backup_id`` empty: planned."""

    backup_id: str = ""
    dry_run: bool = False


class RescueRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``rescue``: ``tables`` of ``database`` at ``target``; empty texts: found out.

    ``into``: the living database, by default the same; ``schema``: the new one that they go to;
    ``new_name``: for one table.
    """

    tables: tuple[str, ...]
    target: RecoveryTarget
    database: str = ""
    into: str = ""
    schema: str = ""
    new_name: str = ""
    timeline: int | None = None
    no_owner: bool = False
    dry_run: bool = False


class ExportRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``export``. ``passphrase``: a reference (``env:NAME``, ``file:/path``) for gpg.

    ``wal_from`` and ``wal_to``: segments or LSNs, in place of an item. ``is_tar``: one archive.
    """

    item_id: str = ""
    to: str
    wal_from: str = ""
    wal_to: str = ""
    is_tar: bool = False
    passphrase: str = ""
    plain_passwords: bool = False


class LoadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``load``: ``source`` is the id of a dump, or a path. ``into``: the database to load into.

    ``database``: which one of the dump, empty: the only one, or that of the same name.
    ``passphrase``: a reference (``env:NAME``, ``file:/path``) for gpg.
    """

    source: str
    into: str
    passphrase: str = ""
    database: str = ""
    choice: LoadChoice = LoadChoice()
    jobs: int = 1
    creates: bool = False
    swaps: bool = False
    analyzes: bool = True
    maintenance_bytes: int = 0


class SetCreateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``set create``; overrides of [backup] and [dump] are in the settings already.

    ``with_proofs``: the dump counts and hashes all rows, for a restore to compare. ``passwords`` as
    in DumpRequest.
    """

    physical: bool = True
    dumps: bool = True
    with_proofs: bool = False
    passwords: bool | None = None
    dry_run: bool = False


class SetRestoreRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``set restore``. ``mode`` empty: physical where the set has a backup.

    ``target_dir`` empty: a logical restore goes into the server that is configured. ``host``,
    ``port`` and ``user`` say another one; with ``target_dir``, ``port`` is that of the new server.
    """

    set_id: str
    target_dir: str = ""
    mode: Literal["physical", "logical", ""] = ""
    tablespace_map: Mapping[str, str] = {}
    host: str = ""
    port: int | None = None
    user: str = ""
    jobs: int = 1
    slots: bool = True
    dry_run: bool = False


class Following(msgspec.Struct, frozen=True, kw_only=True):
    """What a restored standby is given to follow its primary; ``conninfo`` has no password.

    ``listen_addresses`` empty: it listens at its socket only.
    """

    conninfo: str
    slot: str = ""
    listen_addresses: str = ""


class RestoreRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``restore``. ``tablespace_map`` maps old directories to new ones.

    ``timeline`` None: chosen by the plan. ``backup_id`` empty: the newest that
    serves the target. ``allow_damaged``: ``backup_id`` may be one that is marked as damaged.
    ``take_over``: the copy becomes the owner of the archive. ``port`` None: with
    ``start``, any free one. ``keep_old``: the directory in which the PGDATA that the restore
    replaces is kept; empty: the destination must be empty. ``delta``: overwrite the PGDATA that is
    there, only where it differs. ``databases``: only these; empty: all. ``drop_others``: the
    others are dropped after the start, and not only closed. ``switch_wal``: beside a live server,
    have it archive its newest WAL first when the target may be newer than the archive.
    ``following``: with ``standby``, the primary that it streams from.
    """

    target: RecoveryTarget = Latest()
    timeline: int | None = None
    action: Action = "promote"
    backup_id: str = ""
    allow_damaged: bool = False
    target_dir: str = ""
    tablespace_map: Mapping[str, str] = {}
    standby: bool = False
    start: bool = False
    port: int | None = None
    take_over: bool = False
    verify_wal: bool = False
    keep_old: str = ""
    delta: bool = False
    databases: tuple[str, ...] = ()
    drop_others: bool = False
    switch_wal: bool = True
    following: Following | None = None
    dry_run: bool = False


class StandbyBuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``standby build``. ``primary``: a URL of libpq without a password.

    ``slot`` empty: none is used. ``wait_seconds``: how long it may take to stream, once started.
    The rest is as in RestoreRequest.
    """

    primary: str
    target_dir: str
    slot: str = ""
    listen_addresses: str = ""
    backup_id: str = ""
    tablespace_map: Mapping[str, str] = {}
    port: int | None = None
    delta: bool = False
    keep_old: str = ""
    start: bool = True
    wait_seconds: float = 600.0
    dry_run: bool = False


class UndoRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``undo``: take the restore ``run`` back (its run id, or its restore id).

    ``target_dir`` empty: the server's own data directory, or what the journal says.
    ``discard``: remove the restored copy, it is kept aside otherwise.
    """

    run: str
    target_dir: str = ""
    discard: bool = False
    dry_run: bool = False


class AllowBranchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``wal allow-branch``: ``timeline`` may go on beyond where newer ones have left it.

    ``revoke``: it may no longer.
    """

    timeline: int
    reason: str = ""
    revoke: bool = False
    dry_run: bool = False


class RecoveryRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``recovery status|resume|promote`` of the instance in ``target_dir``.

    Empty: the server's own data directory. ``wait_seconds``: how long a promotion
    or the end of recovery is waited for. ``take_over``: the copy becomes the owner
    of the archive.
    """

    target_dir: str = ""
    wait_seconds: float = 60.0
    take_over: bool = False
    dry_run: bool = False


class EnableRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``wal enable``: turn archiving on, or with ``undo`` back to what it was.

    ``admin`` is the role to do it as; empty: the configured one. ``role`` empty: none is made.
    ``role_password`` is a reference (env:NAME, file:/path). ``slot``: make the slot of [receive].
    ``agent``: archive through this installation's client of the agent, ``client``: through
    that one, as the server's host sees it. ``wal_keep_mib`` 0 and ``archive_timeout_seconds`` 0
    turn that off.
    """

    undo: bool = False
    admin: str = ""
    agent: bool = False
    client: str = ""
    archive_timeout_seconds: int | None = None
    wal_keep_mib: int | None = None
    role: str = ""
    role_password: str = ""
    slot: bool = False
    replace: bool = False
    write_hba: bool = False
    restart: bool = False
    dry_run: bool = False


class RecoverableRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``recoverable``: the ranges, and for any ``target`` but Latest a yes or no.

    ``timeline`` None: the one that a restore would follow.
    """

    target: RecoveryTarget = Latest()
    timeline: int | None = None


class SwitchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``wal switch``. ``timeout_seconds`` None: ``backup.archive_timeout_seconds``."""

    timeout_seconds: float | None = None
    dry_run: bool = False


class WalStatusRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``wal status``. Bounds None: none is set. ``test``: push a probe and wait for it.

    ``reset_stats``: set the counters of pg_stat_archiver back after reading them.
    """

    warn_seconds: float | None = None
    fail_seconds: float | None = None
    warn_bytes: int | None = None
    fail_bytes: int | None = None
    warn_segments: int | None = None
    fail_segments: int | None = None
    test: bool = False
    reset_stats: bool = False
    timeout_seconds: float | None = None
    dry_run: bool = False


class ExpireRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``expire``. ``chosen``: just these backups; ``undo``: a backup or run to bring back.

    ``trust_clock``: dates that look as if a clock had jumped are right.
    """

    chosen: tuple[str, ...] = ()
    undo: str = ""
    trust_clock: bool = False
    dry_run: bool = False


class PurgeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``purge``; ``trust_clock`` as for ``expire``."""

    trust_clock: bool = False
    dry_run: bool = False


class HoldRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``hold add``: never let ``item_id`` expire, until a moment or (None) a release."""

    item_id: str
    reason: str
    until: datetime | None = None


class RestorePointRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``restore-point``: make one called ``name``, and see it archived.

    ``allow_taken``: also when a restore point of this name is archived already.
    """

    name: str
    timeout_seconds: float | None = None
    allow_taken: bool = False
    dry_run: bool = False


class FindRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``find``: exactly one of the questions is asked; tables are patterns, ``xid`` 0 is none.

    ``timeline`` None: all timelines of the archive.
    """

    restore_points: bool = False
    dropped: str = ""
    truncated: str = ""
    at: datetime | None = None
    xid: int = 0
    deletes: bool = False
    timeline: int | None = None


class WalIndexRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``wal index``: segments by name or LSN, both bounds included; empty: no bound."""

    first: str = ""
    last: str = ""
    timeline: int | None = None
    dry_run: bool = False


class KeyRotateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``key rotate``: a new data key for what is stored from now on."""

    dry_run: bool = False


class KeyRewrapRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``key rewrap``: ``old`` are settings of the repository that open its keys now.

    Empty: the configured secret opens them. ``revoke_old``: remove what older
    secrets open, when the configured one opens everything.
    """

    old: Mapping[str, Value] = {}
    revoke_old: bool = False
    dry_run: bool = False


class KeyExportRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``key export`` into a new file ``path``; empty: printed."""

    path: str = ""


class UpgradeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``server upgrade``: open a new generation for the system that runs now."""

    dry_run: bool = False


class StatusRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``status``; ``since`` shows the runs that ended after it, None: only counts of a week."""

    since: datetime | None = None


class DoctorRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``doctor``. ``target_dirs``: data directories to look at, besides the server's own.

    ``least_free_percent``: a file system with less of its room free is called full.
    """

    target_dirs: tuple[str, ...] = ()
    least_free_percent: float = 10.0


class DemoRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``demo``: everything in a directory of its own, removed afterwards unless ``keep``."""

    directory: str = ""
    scale: int = 10
    keep: bool = False
