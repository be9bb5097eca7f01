"""The part of the error tree for which errors.py, which says what each has, is too long."""

from pgrecall.errors import PgrecallError, RepositoryError, StoreError

#: The cure for ObjectFrozenError.
THAW = (
    "thaw it (aws s3api restore-object), or use another repository; a lifecycle rule has moved it,"
    " see docs/stores.md"
)


class ObjectFrozenError(StoreError):
    """An object lies in an archive class (Glacier): it must be thawed before it can be read."""

    code = "object-frozen"
    exit_status = 18
    retryable = False


class RunsBrokenError(PgrecallError):
    """At least one record of a run is missing, altered or extra, or a chain cannot be read."""

    code = "runs-broken"
    exit_status = 47


class DumpNotFoundError(RepositoryError):
    """There is no complete dump of this id; it was never made, has expired, or lies elsewhere."""

    code = "dump-not-found"
    exit_status = 19


class SetNotFoundError(RepositoryError):
    """There is no complete recovery set of this id; it was never made, or has expired."""

    code = "set-not-found"
    exit_status = 58


class SetError(PgrecallError):
    """A recovery set was not made or not brought back, or what came back differs from it."""

    code = "set-failed"
    exit_status = 59


class ImportRefusedError(PgrecallError):
    """Files to be imported are damaged, or another server's: the message names them."""

    code = "import-refused"
    exit_status = 63


class DrillFailedError(PgrecallError):
    """A drill has failed: the copy did not come up, or is not what it should be."""

    code = "drill-failed"
    exit_status = 55


class DumpError(PgrecallError):
    """A dump was not made: one of PostgreSQL's tools failed, or the server would not let it."""

    code = "dump-failed"
    exit_status = 48


class LoadError(PgrecallError):
    """A dump was not loaded, or not all of it: the message says what was done and what was not."""

    code = "load-failed"
    exit_status = 49


class KeyUnavailableError(StoreError):
    """What opens the keys (a KMS, by its command) could not be asked: nothing is known of a key."""

    # A StoreError: whoever waits for a store that is away waits for this, too, and nobody takes
    # it for damage. 75 as in sysexits.h: a temporary failure.

    code = "key-unavailable"
    exit_status = 75
    retryable = True


class StandbyError(PgrecallError):
    """A standby cannot be built on that primary, or was built and does not stream."""

    code = "standby-failed"
    exit_status = 56


class StepFailedError(PgrecallError):
    """A command that a make target runs has failed; the message says which, and why."""

    code = "step-failed"
    exit_status = 94


class CaptureRestoreError(PgrecallError):
    """A capture was not brought back, or not all of it: what is done, undo takes back."""

    code = "capture-restore-failed"
    exit_status = 67


class CapturesDifferError(PgrecallError):
    """captures diff --exit-code has found a difference, and shown it."""

    code = "captures-differ"
    exit_status = 66
