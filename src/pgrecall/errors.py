"""The whole error tree.

Every error has a stable kebab-case ``code``, an ``exit_status`` of the command
line, ``retryable`` (the same call may succeed later without anybody mending
anything), a message that says what happened to what, and a ``hint`` that says
what to do. Third-party exceptions are wrapped at the edge of their room with
``raise ... from``.

Exit statuses stay below 126: PostgreSQL restarts the archiver when an archive
command ends with a larger one. 64 is reserved: ``wal fetch`` says with it that
a file is *proven* absent from every repository, and nothing else may use it.
"""

EXIT_OK = 0
EXIT_PROVEN_ABSENT = 64


class ReportedError(BaseException):
    """What the edge reports: PgrecallError, and the end of a run by a signal."""

    code = ""
    exit_status = 1
    retryable = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class PgrecallError(ReportedError, Exception):
    """Root of all errors that pgrecall raises on purpose."""

    code = "internal"


class UsageError(PgrecallError):
    """The command line is wrong: an option is missing, unknown or contradicts another."""

    code = "usage"
    exit_status = 2


class SettingsError(PgrecallError):
    """The configuration file, an environment variable or a flag holds bad settings."""

    code = "settings"
    exit_status = 3


class StoreError(PgrecallError):
    """A store did not do what was asked; whether the object exists is unknown."""

    code = "store"
    exit_status = 4
    retryable = True


class StoreRefusedError(StoreError):
    """The store refuses: wrong credentials, missing permission, read-only."""

    code = "store-refused"
    exit_status = 5
    retryable = False


class StoreFullError(StoreError):
    """The store has no space left."""

    code = "store-full"
    exit_status = 6
    retryable = False


class ObjectMissingError(StoreError):
    """The store answered: there is no object under this key."""

    code = "object-missing"
    exit_status = 7
    retryable = False


class UnsafeStoreError(StoreError):
    """The store does not honour what pgrecall needs (put-if-absent, durable writes)."""

    code = "store-unsafe"
    exit_status = 8
    retryable = False


class PutNotKeptError(UnsafeStoreError):
    """The store acknowledged an object and does not hold it, or holds other bytes."""

    code = "put-not-kept"
    exit_status = 14
    retryable = True


class StoreAbsentError(StoreError):
    """The store itself is not there (not mounted, no bucket): nothing is known of its objects."""

    code = "store-absent"
    exit_status = 9
    retryable = False


class InvalidKeyError(StoreError):
    """A key that no store may be asked for: nothing was sent to the store."""

    code = "invalid-key"
    exit_status = 13
    retryable = False


class RepositoryError(PgrecallError):
    """The repository is missing, of a newer format, or not what was expected."""

    code = "repository"
    exit_status = 10


class CorruptObjectError(RepositoryError):
    """Stored bytes do not match their digest, or do not parse."""

    code = "corrupt-object"
    exit_status = 11

    #: The object, where whoever raised it knew; and what it holds there: path, offset, length.
    key = ""
    pieces: tuple[tuple[str, int, int], ...] = ()


class BackupNotFoundError(RepositoryError):
    """No complete backup has this id, or there is no backup at all."""

    code = "backup-not-found"
    exit_status = 12


class KeyMissingError(RepositoryError):
    """The repository is encrypted, and the settings have nothing that could open its keys."""

    code = "key-missing"
    exit_status = 15


class KeyRefusedError(RepositoryError):
    """The configured secret does not open the keys of the repository; nothing was written."""

    code = "key-refused"
    exit_status = 16


class NotEncryptedError(RepositoryError):
    """The settings say how the repository is encrypted, and it is not."""

    code = "not-encrypted"
    exit_status = 17


class BackupMarkedError(RepositoryError):
    """The backup is marked: a verification found it damaged in this repository."""

    code = "backup-marked-damaged"
    exit_status = 44


class PostgresError(PgrecallError):
    """PostgreSQL answered with an error."""

    code = "postgres"
    exit_status = 20


class PostgresUnreachableError(PostgresError):
    """No connection to the server can be made, or it was lost."""

    code = "postgres-unreachable"
    exit_status = 21
    retryable = True


class PostgresRightsError(PostgresError):
    """The role or the operating system user may not do what is needed."""

    code = "postgres-rights"
    exit_status = 22


class UnsupportedServerError(PostgresError):
    """The server's version or configuration cannot be served."""

    code = "server-unsupported"
    exit_status = 23


class DataDirectoryError(PostgresError):
    """PGDATA is missing, unreadable, or not what the server says it is."""

    code = "data-directory"
    exit_status = 24


class ToolMissingError(PostgresError):
    """A PostgreSQL program that is needed was not found."""

    code = "tool-missing"
    exit_status = 25


class ServerIsStandbyError(PostgresError):
    """The server is in recovery, and what was asked for can only be done on its primary."""

    code = "server-is-standby"
    exit_status = 26


class IdentityError(PgrecallError):
    """System identifier, segment size, page address or timeline belong to another server."""

    code = "identity"
    exit_status = 30


class NotOwnerError(IdentityError):
    """A restored copy, or a server that was replaced, tried to write to the archive."""

    code = "not-owner"
    exit_status = 31


class FormerPrimaryError(IdentityError):
    """A primary tried to archive WAL beyond the point where a newer timeline left its own."""

    code = "former-primary"
    exit_status = 38


class WalConflictError(PgrecallError):
    """The archive already holds other content under the same name."""

    code = "wal-conflict"
    exit_status = 32


class WalFormatError(PgrecallError):
    """A WAL file is truncated, not WAL, or has a name that PostgreSQL does not use."""

    code = "wal-format"
    exit_status = 33


class WalMissingError(PgrecallError):
    """WAL that is needed is not in the archive."""

    code = "wal-missing"
    exit_status = 34


class ReceiveError(PgrecallError):
    """WAL cannot be received by streaming; what was received before is kept."""

    code = "receive"
    exit_status = 80


class WalGapError(ReceiveError):
    """The server no longer has WAL that comes next, and the archive does not have it either."""

    code = "wal-gap"
    exit_status = 81


class WalDivergedError(ReceiveError):
    """The server's WAL does not continue what was received before; nothing was overwritten."""

    code = "wal-diverged"
    exit_status = 82


class SlotError(ReceiveError):
    """A replication slot is lost, in use, of the wrong kind, or is not there."""

    code = "slot"
    exit_status = 83


class SynchronousCommitError(ReceiveError):
    """Commits would wait for a synchronous receiver for ever."""

    code = "synchronous-commit"
    exit_status = 84


class NotArchivedError(PgrecallError):
    """A segment did not become durable in every required repository."""

    code = "not-archived"
    exit_status = 35
    retryable = True


class BranchNotLeftError(PgrecallError):
    """No newer timeline has left the one that is to go on: there is nothing to allow."""

    code = "branch-not-left"
    exit_status = 39


class RestorePointTakenError(PgrecallError):
    """A restore point of this name exists already; recovery by name would stop at either."""

    code = "restore-point-taken"
    exit_status = 37


class ArchivingRefusedError(PgrecallError):
    """Archiving cannot be turned on (or off again) as things are; nothing was changed."""

    code = "archiving-refused"
    exit_status = 36


class ServerBeingChangedError(PgrecallError):
    """Somebody else turns archiving of the server on or off at this moment."""

    code = "server-being-changed"
    exit_status = 27
    retryable = True


class BackupError(PgrecallError):
    """A backup could not be completed; the server and the catalog are as before."""

    code = "backup"
    exit_status = 40


class ArchiveTimeoutError(BackupError):
    """The WAL that a backup needs did not reach the archive in time."""

    code = "archive-timeout"
    exit_status = 41
    retryable = True


class BackupDamagedError(BackupError):
    """The backup is complete and kept, and pages of the server's own data in it are damaged."""

    code = "backup-damaged"
    exit_status = 42


class RestoreError(PgrecallError):
    """A restore could not be completed."""

    code = "restore"
    exit_status = 50


class TargetUnreachableError(RestoreError):
    """The recovery target lies outside the recoverable range."""

    code = "target-unreachable"
    exit_status = 51


class DestinationError(RestoreError):
    """The restore destination is not empty, is in use, or cannot be written."""

    code = "destination"
    exit_status = 52


class SpaceError(RestoreError):
    """There is not enough space."""

    code = "space"
    exit_status = 53


class RecoveryError(RestoreError):
    """PostgreSQL did not reach the end of recovery."""

    code = "recovery"
    exit_status = 54


class RetentionError(PgrecallError):
    """What is kept cannot be decided, or may not be changed like this: nothing was."""

    code = "retention"
    exit_status = 90


class ConcurrentChangeError(RetentionError):
    """Another run changed what is held or expired after the plan was made: nothing was done."""

    code = "retention-changed"
    exit_status = 91
    retryable = True


class ClockJumpError(RetentionError):
    """The newest things are dated so far from the others that a clock may have jumped."""

    code = "clock-jump"
    exit_status = 92


class PurgeIncompleteError(RetentionError):
    """The store refused to delete some objects: the findings name them; the rest is gone."""

    code = "purge-incomplete"
    exit_status = 93


class CheckFailedError(PgrecallError):
    """At least one finding of a check is a failure."""

    code = "check-failed"
    exit_status = 60


class VerifyFailedError(PgrecallError):
    """At least one finding of a verification is a failure."""

    code = "verify-failed"
    exit_status = 43


class CopyFailedError(PgrecallError):
    """At least one backup, or part of the WAL, could not be copied to another repository."""

    code = "copy-failed"
    exit_status = 45


class RepairFailedError(PgrecallError):
    """Something is damaged still after a repair."""

    code = "repair-incomplete"
    exit_status = 46


class ConfirmationError(PgrecallError):
    """Something that needs confirmation was not confirmed; nothing was changed."""

    code = "not-confirmed"
    exit_status = 61


class InterruptedRunError(ReportedError):
    """The run was ended by a signal; what it had begun was put back."""

    # No PgrecallError, nor any Exception: whoever carries on after a failure (a best-effort
    # repository, a finding, a component) must not take the end of the run for one.

    code = "interrupted"
    exit_status = 62
    retryable = True


class AgentRunningError(PgrecallError):
    """Another agent serves this server on this host already."""

    code = "agent-running"
    exit_status = 70


class AgentPlaceError(PgrecallError):
    """The agent's own directory cannot be made or used, or is open to others."""

    code = "agent-place"
    exit_status = 71


class AgentSilentError(PgrecallError):
    """The agent does not answer, or does not serve this call."""

    code = "agent-silent"
    exit_status = 74
    retryable = True


class StatusWarnError(PgrecallError):
    """``status``: something needs attention, and no target is missed."""

    code = "status-warn"
    exit_status = 72


class StatusFailError(PgrecallError):
    """``status``: a target is missed, or nothing that could be restored is known."""

    code = "status-fail"
    exit_status = 73
