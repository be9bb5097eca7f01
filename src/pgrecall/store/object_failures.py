"""What went wrong in an object store, in our errors: a kind, a short text, no secret.

obstore reports most failures as one generic error whose text holds the HTTP
status and the service's XML; the classes tell apart only what is missing, taken
or forbidden.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

from pgrecall.errors import (
    ObjectMissingError,
    StoreAbsentError,
    StoreError,
    StoreFullError,
    StoreRefusedError,
)
from pgrecall.further_errors import THAW, ObjectFrozenError

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([^<]{1,100})</Code>|\(code: (\w{1,100})\)")
_MESSAGE = re.compile(r"<Message>([^<]{1,500})</Message>")
# "Error performing PUT http://... in 1.5ms - what happened"
_PERFORMING = re.compile(r"Error performing \w+ \S+ in \S+ - ")
_MAX_TEXT_LENGTH = 500

# The answer to a read of what lies in an archive class.
_FROZEN = "InvalidObjectState"
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"})
_FULL = frozenset(
    {"QuotaExceeded", "QuotaExceededException", "XMinioStorageFull", "XAmzStorageFull"}
)
_REFUSED = frozenset(
    {
        "AccessDenied",
        "AuthenticationFailed",
        "AuthorizationFailure",
        "AuthorizationHeaderMalformed",
        "AuthorizationPermissionMismatch",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "PermanentRedirect",
        "InsufficientAccountPermissions",
    }
)
# Of the 4xx answers, those that say "later", not "never": timeout, conflict, early, slow down.
_PASSING_STATUSES = frozenset({408, 409, 425, 429})
_NO_SPACE_STATUS = 507
_NO_SUCH_RANGE_STATUS = 416
_PAST_THE_END = "Wanted range starting at"


class Failure:
    """An error of obstore, taken apart: HTTP ``status`` (0: none), the service's ``code``, text."""

    __slots__ = ("code", "error", "is_past_the_end", "status", "text")

    def __init__(self, error: Exception, secrets: Iterable[str]) -> None:
        whole = str(error).partition("\n\nDebug source")[0]
        status = _STATUS.search(whole)
        code = _CODE.search(whole)
        message = _MESSAGE.search(whole)
        self.error = error
        self.status = int(status[1]) if status else 0
        self.code = (code[1] or code[2]) if code else ""
        # The range that was asked for begins at or behind the object's end. Azure answers
        # with the whole of an object, and obstore finds it out.
        self.is_past_the_end = self.status == _NO_SUCH_RANGE_STATUS or _PAST_THE_END in whole
        if message and self.code:
            text = f"{self.code}: {message[1]}"
        else:
            text = _PERFORMING.split(whole)[-1].partition("<?xml")[0].strip(" :\n")
        for secret in secrets:
            if secret:
                text = text.replace(secret, "(secret)")
        self.text = text[:_MAX_TEXT_LENGTH]

    @property
    def is_conflict(self) -> bool:
        """409: another write of this key is under way (S3), or the key is taken (Azure)."""
        return self.status == 409

    def translated(self, doing: str, store: str) -> StoreError:
        """The error to raise; ``doing`` such as ``cannot read KEY``.

        ObjectMissingError only where the service says that the object is
        missing, and not the bucket.
        """
        text = f"{doing} in {store}: {self.text}"
        if self.code in _NO_BUCKET:
            return StoreAbsentError(text, hint="create the bucket, or correct its name")
        if self.code == _FROZEN:
            return ObjectFrozenError(text, hint=THAW)
        if isinstance(self.error, FileNotFoundError):
            return ObjectMissingError(f"{doing} in {store}: no such object")
        if self.code in _FULL or self.status == _NO_SPACE_STATUS:
            return StoreFullError(text, hint="raise the quota or free space")
        if (
            isinstance(self.error, PermissionDeniedError | UnauthenticatedError)
            or self.code in _REFUSED
            or self.status in {401, 403}
        ):
            return StoreRefusedError(
                text,
                hint="see the credentials, the region and the rights of the bucket "
                "(docs/stores.md lists the smallest set)",
            )
        failure = StoreError(text, hint="see that the service can be reached and is healthy")
        if 300 <= self.status < 500 and self.status not in _PASSING_STATUSES:
            failure.retryable = False
        return failure
