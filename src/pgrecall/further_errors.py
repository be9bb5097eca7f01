"""The part of the error tree for which errors.py, which says what each has, is too long."""

from pgrecall.errors import PgrecallError, StoreError

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


class KeyUnavailableError(StoreError):
    """What opens the keys (a KMS, by its command) could not be asked: nothing is known of a key."""

    # A StoreError: whoever waits for a store that is away waits for this, too, and nobody takes
    # it for damage.

    code = "key-unavailable"
    exit_status = 19
    retryable = True
