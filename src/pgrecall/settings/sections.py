"""The sections of pgrecall.toml: every setting there is, declared once.

Light (see declare.py). docs/settings.md, docs/settings.schema.json and the
template that ``init`` writes are generated from here by ``make docs``.
"""

from __future__ import annotations

from pgrecall.settings.declare import Section, setting
from pgrecall.settings.dumps import DrillSettings, DumpSettings
from pgrecall.settings.policies import PolicySettings, RetentionSettings
from pgrecall.settings.replication import ReplicationSettings

_DAY = 86_400.0
_GIB = 1 << 30


class ServerSettings(Section):
    """One PostgreSQL server to protect: ``[servers.NAME]``."""

    name: str = setting(default="", is_key=False, doc="The NAME of the table.")
    data_directory: str = setting(
        default="", is_path=True, doc="PGDATA, as this host sees it. Empty: asked from the server."
    )
    source: str = setting(
        default="local",
        choices=("local", "stream"),
        doc="How backups get the data: local reads PGDATA on this host, stream has the server, a"
        " primary or a standby, send it through a replication session (docs/sources.md).",
    )
    host: str = setting(
        default="",
        doc="Socket directory (starts with /) or host name. Empty: the default of libpq.",
    )
    port: int = setting(default=5432, bounds=(1, 65535), doc="Port of the server.")
    user: str = setting(
        default="", doc="Role to connect as. Empty: the name of the operating system user."
    )
    database: str = setting(default="postgres", doc="Database to connect to.")
    password: str = setting(
        default="",
        is_secret=True,
        doc="Where the password is found. Empty: none, or what libpq finds (~/.pgpass).",
    )
    bin_directory: str = setting(
        default="",
        is_path=True,
        doc="Directory of PostgreSQL's programs (pg_ctl, postgres). Empty: searched for.",
    )
    repositories: tuple[str, ...] = setting(
        default=(), doc="Names of the repositories of this server. Empty: all of them."
    )
    captures: bool = setting(
        default=True,
        doc="Whether configuration is captured unasked: before backups and changes, and by the"
        " agent when somebody has changed it (docs/captures.md).",
    )
    retention: str = setting(
        default="",
        doc="What is kept: the NAME of a table [policies.NAME], or of a profile. Empty: as"
        " [retention] says.",
    )


class RepositorySettings(Section):
    """One place that keeps backups and WAL: ``[repositories.NAME]``."""

    name: str = setting(default="", is_key=False, doc="The NAME of the table.")
    store: str = setting(
        default="local",
        choices=("local", "s3", "gcs", "azure"),
        doc="What keeps the bytes: a local directory, S3 and its likes, Google, or Azure.",
    )
    role: str = setting(
        default="required",
        choices=("required", "best-effort"),
        doc="Whether a backup or a pushed segment counts only when it is in this repository.",
    )
    copies_backups: bool = setting(
        default=False,
        doc="Whether each backup is copied here when it is complete in the first repository.",
    )
    is_offsite: bool = setting(
        default=False, doc="Whether it is at another place than the server (3-2-1 rule)."
    )
    retention: str = setting(
        default="",
        doc="What is kept in this repository: the NAME of a policy or profile. Empty: as the"
        " server says.",
    )
    path: str = setting(default="", is_path=True, doc="Directory of a local store.")
    bucket: str = setting(default="", doc="Bucket (S3, Google) or container (Azure).")
    prefix: str = setting(default="", doc="What all keys in the bucket begin with.")
    endpoint: str = setting(
        default="", doc="URL of the service, for others than Amazon's, Google's and Microsoft's."
    )
    region: str = setting(default="", doc="Region of the bucket (S3).")
    path_style: bool = setting(
        default=False, doc="Put the bucket into the path of the URL, not into the host name (S3)."
    )
    ca_file: str = setting(
        default="", is_path=True, doc="Certificates (PEM) to trust instead of the system's."
    )
    allow_http: bool = setting(default=False, doc="Accept an endpoint without TLS.")
    access_key: str = setting(
        default="",
        is_secret=True,
        doc="Where the access key id is found (S3). Empty: the credentials of the environment.",
    )
    secret_key: str = setting(
        default="", is_secret=True, doc="Where the secret access key is found (S3)."
    )
    session_token: str = setting(
        default="", is_secret=True, doc="Where the session token is found (S3), if there is one."
    )
    account: str = setting(default="", doc="Storage account (Azure).")
    account_key: str = setting(
        default="", is_secret=True, doc="Where the key of the account is found (Azure)."
    )
    credentials_file: str = setting(
        default="",
        is_secret=True,
        doc="Where the JSON of the service account is found (Google), e.g. file:/etc/gcs.json.",
    )
    sse: str = setting(
        default="",
        choices=("", "AES256", "aws:kms"),
        doc="Server-side encryption to ask for (S3). Empty: what the bucket does by itself.",
    )
    sse_kms_key: str = setting(default="", doc="Identity of the KMS key, with sse = aws:kms.")
    storage_class: str = setting(
        default="",
        choices=("", "STANDARD", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"),
        doc="Storage class of objects of 128 KiB and more (S3); all of these can be read at once."
        " Empty: the bucket's own.",
    )
    encryption: str = setting(
        default="",
        choices=("", "passphrase", "age", "command", "exported"),
        doc="What opens the keys of an encrypted repository (docs/encryption.md). Fixed by init:"
        " a repository is encrypted from its beginning or never. Empty: it is not.",
    )
    passphrase: str = setting(
        default="",
        is_secret=True,
        doc="Where the passphrase is found, with encryption = passphrase.",
    )
    age_identity: str = setting(
        default="",
        is_secret=True,
        doc="Where the age identity (AGE-SECRET-KEY-1...) is found, with encryption = age.",
    )
    age_recipients: tuple[str, ...] = setting(
        default=(), doc="Who can open the keys (age1...). Empty: only the identity."
    )
    wrap_command: tuple[str, ...] = setting(
        default=(),
        doc="Program and arguments that wrap a key, with encryption = command: reads the key's 32"
        " bytes from standard input and writes what is stored.",
    )
    unwrap_command: tuple[str, ...] = setting(
        default=(),
        doc="Program and arguments that turn what wrap_command wrote into the key again.",
    )
    exported_keys: str = setting(
        default="",
        is_secret=True,
        doc="Where the output of key export is found, with encryption = exported: the way in when"
        " the secret is lost.",
    )
    timeout_seconds: float = setting(
        default=120.0,
        unit="seconds",
        bounds=(0.1, _DAY),
        doc="Bound of one request, body included.",
    )
    connect_timeout_seconds: float = setting(
        default=5.0, unit="seconds", bounds=(0.1, 600), doc="Bound of making a connection."
    )
    retry_seconds: float = setting(
        default=60.0,
        unit="seconds",
        bounds=(0, _DAY),
        doc="Bound of all attempts of one operation together.",
    )
    retries: int = setting(
        default=5, bounds=(0, 100), doc="How often an operation that failed is tried again."
    )
    pack_bytes: int = setting(
        default=0,
        unit="bytes",
        bounds=(0, _GIB),
        doc="Size at which a pack is closed. 0: the store's own (16 MiB on object stores).",
    )


class BackupSettings(Section):
    """How backups are made: ``[backup]``."""

    compression: str = setting(
        default="zstd", choices=("zstd", "lz4", "none"), doc="Compression of the data."
    )
    level: int = setting(
        default=1, bounds=(1, 19), doc="Level of the compression; 1 is the fastest."
    )
    workers: int = setting(
        default=0, bounds=(0, 256), doc="Threads that read and compress. 0: one for each core."
    )
    checkpoint: str = setting(
        default="fast",
        choices=("fast", "spread"),
        doc="Start with an immediate checkpoint, or wait for a gentle one.",
    )
    bytes_per_second: int = setting(
        default=0,
        unit="bytes",
        bounds=(0, 1 << 50),
        doc="How much of the data directory is read in a second at most, by all workers together."
        " 0: as fast as it goes.",
    )
    nice: int = setting(
        default=0,
        bounds=(0, 19),
        doc="CPU priority of the backup, as of nice(1): 19 gives way to everything else.",
    )
    io_priority: str = setting(
        default="normal",
        choices=("normal", "low", "idle"),
        doc="Disk priority of the backup, as of ionice(1), where the disk's scheduler heeds it.",
    )
    full_every_days: int = setting(
        default=7,
        unit="days",
        bounds=(0, 36_500),
        doc="A backup is a full one when the newest full one is so old; all others store what has"
        " changed. 0: only when there is nothing to go on from.",
    )
    archive_timeout_seconds: float = setting(
        default=300.0,
        unit="seconds",
        bounds=(1, _DAY),
        doc="How long the WAL that a backup needs may take to arrive in the archive.",
    )
    page_rereads: int = setting(
        default=5,
        bounds=(0, 1000),
        doc="How often a page whose checksum fails is read again before it is called corrupt.",
    )


class WalSettings(Section):
    """How WAL is archived: ``[wal]``."""

    compression: str = setting(
        default="zstd", choices=("zstd", "lz4", "none"), doc="Compression of the segments."
    )
    level: int = setting(
        default=1,
        bounds=(1, 19),
        doc="Level of the compression; 1 is the fastest, 2 stores an eighth less for a little more"
        " time.",
    )
    retry_seconds: float = setting(
        default=30.0,
        unit="seconds",
        bounds=(0, 3600),
        doc="How long one wal push or wal fetch tries again before it gives up.",
    )


class VerifySettings(Section):
    """How what is stored is verified: ``[verify]``."""

    workers: int = setting(
        default=0, bounds=(0, 256), doc="Threads that read and check. 0: two for each core."
    )
    bytes_per_second: int = setting(
        default=0,
        unit="bytes",
        bounds=(0, 1 << 50),
        doc="How much is read in a second at most, from one repository. 0: as fast as it goes.",
    )


class CopySettings(Section):
    """How backups and WAL go from one repository to another, and are healed: ``[copy]``."""

    workers: int = setting(
        default=0,
        bounds=(0, 256),
        doc="Threads that read, check and write. 0: two for each core. Fewer where the packs of"
        " so many would not fit into 512 MiB of memory.",
    )
    bytes_per_second: int = setting(
        default=0,
        unit="bytes",
        bounds=(0, 1 << 50),
        doc="How much is copied in a second at most. 0: as fast as it goes.",
    )


class AgentSettings(Section):
    """The process that stays beside a server: ``[agent]``."""

    directory: str = setting(
        default="/var/lib/pgrecall",
        is_path=True,
        doc="Where the agent keeps its socket, its spool and its state, a directory per server.",
    )
    socket: str = setting(
        default="",
        is_path=True,
        doc="The socket that serves wal push and wal fetch. Empty: agent.sock in its directory.",
    )
    push_workers: int = setting(
        default=0,
        bounds=(0, 64),
        doc="Segments that are pushed ahead at the same time. 0: two for each core.",
    )
    drop_wal_above_bytes: int = setting(
        default=0,
        unit="bytes",
        bounds=(0, 1 << 50),
        doc="While the store fails and more ready WAL than this waits, give up the oldest of it"
        " so that PostgreSQL does not stop on a full disk: recovery never passes that gap."
        " 0: never.",
    )
    prefetch_segments: int = setting(
        default=16,
        unit="segments",
        bounds=(0, 1024),
        doc="How many segments are fetched ahead of a recovery, which bounds their disk. 0: none.",
    )
    names_seconds: float = setting(
        default=3600.0,
        unit="seconds",
        bounds=(0, 366 * _DAY),
        doc="How often it is recorded what tables are called, for find. 0: with backups only.",
    )
    metrics_address: str = setting(
        default="",
        doc="Where /metrics and /healthz are served: HOST:PORT, :PORT for this host only, or the "
        "path of a socket. Empty: nowhere.",
    )


class ReceiveSettings(Section):
    """Receiving WAL by streaming replication: ``[receive]``."""

    is_enabled: bool = setting(
        default=False, doc="Whether the agent receives; wal receive does it in any case."
    )
    slot: str = setting(
        default="pgrecall", doc="The physical replication slot; it is made when it is missing."
    )
    is_synchronous: bool = setting(
        default=False,
        doc="Report what is flushed after each write, so that commits may wait for it.",
    )
    application_name: str = setting(
        default="pgrecall", doc="The name that synchronous_standby_names may list."
    )
    tail_seconds: float = setting(
        default=10.0,
        unit="seconds",
        bounds=(0, 3600),
        doc="How often the unfinished segment is stored in the repository. 0: never.",
    )
    confirm: str = setting(
        default="spool",
        choices=("spool", "repository"),
        doc="What lets the server remove WAL: durable in the spool here, or in every required"
        " repository.",
    )


class ScheduleSettings(Section):
    """When the agent runs what is to be run regularly: ``[schedule]``.

    Each is a cron expression of five fields (minute, hour, day of the month, month,
    day of the week), or empty: never.
    """

    backup: str = setting(default="", doc='When a backup is made, e.g. "0 3 * * *".')
    check: str = setting(default="", doc='When the configuration is proven, e.g. "30 * * * *".')
    drill: str = setting(default="", doc='When a restore is drilled, e.g. "0 9 1 * *".')
    dump: str = setting(default="", doc='When all databases are dumped, e.g. "0 2 * * *".')
    expire: str = setting(
        default="",
        doc='When what the policy does not keep expires, unasked, e.g. "0 5 * * *".',
    )
    purge: str = setting(
        default="",
        doc="When what expired longer ago than the grace is deleted, unasked, e.g."
        ' "0 6 * * *". Empty where the agent\'s credentials may not delete.',
    )
    verify: str = setting(
        default="", doc='When every stored byte is proven whole, e.g. "0 8 * * 0".'
    )
    time_zone: str = setting(
        default="UTC", doc="The zone in which the expressions are meant, e.g. Europe/Berlin."
    )


class TargetSettings(Section):
    """What is to be reached; status compares: ``[targets]``."""

    rpo_seconds: float = setting(
        default=0.0,
        unit="seconds",
        bounds=(0, 366 * _DAY),
        doc="How much of the latest work may be lost at most. 0: no target.",
    )
    rto_seconds: float = setting(
        default=0.0,
        unit="seconds",
        bounds=(0, 366 * _DAY),
        doc="How long it may take at most until the server is back. 0: no target.",
    )
    backup_age_seconds: float = setting(
        default=0.0,
        unit="seconds",
        bounds=(0, 3660 * _DAY),
        doc="How old the last good backup may be. 0: no target.",
    )
    drill_age_seconds: float = setting(
        default=0.0,
        unit="seconds",
        bounds=(0, 3660 * _DAY),
        doc="How old the last good restore drill may be. 0: no target.",
    )


class RestoreSettings(Section):
    """How backups are restored: ``[restore]``."""

    workers: int = setting(
        default=0, bounds=(0, 256), doc="Threads that fetch and write. 0: two for each core."
    )
    on_fetch_error: str = setting(
        default="abort",
        choices=("abort", "retry"),
        doc="When wal fetch cannot tell whether a segment is there: stop the recovery, or go on"
        " asking until the store answers. A standby always asks again by itself.",
    )


class LogSettings(Section):
    """What is said on standard error: ``[log]``."""

    level: str = setting(
        default="info",
        choices=("debug", "info", "warning", "error"),
        doc="The least important kind of message that is written.",
    )
    format: str = setting(
        default="text", choices=("text", "json"), doc="Lines of key=value, or of JSON."
    )


class RunsSettings(Section):
    """The records of runs: ``[runs]``."""

    writer: str = setting(
        default="",
        doc="Whose chain of records this host continues. Empty: the host's name. Name it where"
        " host names change with every start (pods).",
    )


#: Tables that exist once.
SINGLE_SECTIONS: dict[str, type[Section]] = {
    "backup": BackupSettings,
    "dump": DumpSettings,
    "drill": DrillSettings,
    "verify": VerifySettings,
    "copy": CopySettings,
    "wal": WalSettings,
    "agent": AgentSettings,
    "receive": ReceiveSettings,
    "schedule": ScheduleSettings,
    "targets": TargetSettings,
    "restore": RestoreSettings,
    "replication": ReplicationSettings,
    "retention": RetentionSettings,
    "runs": RunsSettings,
    "log": LogSettings,
}

#: Tables of named tables.
NAMED_SECTIONS: dict[str, type[Section]] = {
    "servers": ServerSettings,
    "repositories": RepositorySettings,
    "policies": PolicySettings,
}
