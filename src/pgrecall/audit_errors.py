"""Errors of the audit trail: a branch of the tree in errors.py, which says what each has."""

from pgrecall.errors import PgrecallError


class RunsBrokenError(PgrecallError):
    """At least one record of a run is missing, altered or extra, or a chain cannot be read."""

    code = "runs-broken"
    exit_status = 47
