"""A store in S3 and its likes, Google Cloud Storage or Azure, through obstore.

A put is one conditional request (``If-None-Match: *``, or the service's own
form of it), never multipart, so it is whole or not there and refused when the
key is taken. obstore's own retries are off: store/retry.py knows what a cut-off
put may have done. A put that was answered with success is looked after: services
and proxies have said so and kept nothing, or half of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError

from pgrecall.errors import (
    CorruptObjectError,
    ObjectMissingError,
    PutNotKeptError,
    StoreError,
)
from pgrecall.store.base import SUITE_NONE, Buffer, ObjectInfo
from pgrecall.store.buffered import BufferedWriter
from pgrecall.store.entity_tags import EntityTags
from pgrecall.store.keys import check_key, check_parent, check_prefix, is_key_part
from pgrecall.store.object_failures import Failure

if TYPE_CHECKING:
    from obstore import Attributes, GetOptions, ObjectMeta
    from obstore.store import ObjectStore as Client

PACK_BYTES = 16 << 20
# Classes for rarely read objects bill each as if it had at least so many.
_LEAST_CLASSED_BYTES = 128 << 10

# What obstore raises; ValueError: it refuses the arguments (a range, a header of the answer).
_FAILURES = (BaseError, OSError, ValueError)


class ObjectStore:
    """Objects in a bucket, through ``client`` (which has the prefix in it).

    ``name`` for messages; ``secrets`` are texts that no error may repeat. A
    listing is collected before the first object is handed out (about 250 bytes
    of memory for each): services order it in different ways, and a failure on
    its last page must not follow after half of it was believed. ``tags``: what
    the service's ETags are worth. ``storage_class``: of objects of 128 KiB and more.
    """

    suite = SUITE_NONE

    def __init__(
        self,
        client: Client,
        name: str,
        tags: EntityTags,
        *,
        secrets: Sequence[str] = (),
        pack_bytes: int = 0,
        storage_class: str = "",
    ) -> None:
        self.name = name
        self.pack_bytes = pack_bytes or PACK_BYTES
        self.reads_whole = True
        self._client = client
        self._tags = tags
        self._secrets = tuple(secrets)
        self._storage_class = storage_class

    def put(self, key: str, parts: Sequence[Buffer]) -> bool:
        check_key(key)
        content = parts[0] if len(parts) == 1 else b"".join(parts)
        try:
            answer = obstore.put(
                self._client,
                key,
                content,
                attributes=self._attributes(content),
                mode="create",
                use_multipart=False,
            )
        except AlreadyExistsError as error:
            failure = self._failure(error)
            # S3 answers 409 while another put of the key is under way, which may yet fail.
            if failure.is_conflict and self.head(key) is None:
                raise failure.translated(f"cannot write {key}", self.name) from error
            return False
        except _FAILURES as error:
            raise self._not_written(error, key) from error
        self._prove_stored(key, content, answer["e_tag"])
        return True

    def _attributes(self, content: Buffer) -> Attributes | None:
        if not self._storage_class or memoryview(content).nbytes < _LEAST_CLASSED_BYTES:
            return None
        return {"Storage-Class": self._storage_class}

    def writer(self, key: str) -> BufferedWriter:
        return BufferedWriter(self.put, check_key(key))

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        check_key(key)
        if length is not None and length <= 0:
            return self._nothing(key)
        options: GetOptions | None = None
        if length is not None:
            options = {"range": (start, start + length)}
        elif start:
            options = {"range": {"offset": start}}
        try:
            return bytes(obstore.get(self._client, key, options=options).bytes())
        except _FAILURES as error:
            failure = self._failure(error)
            if failure.is_past_the_end:
                return self._nothing(key)
            raise failure.translated(f"cannot read {key}", self.name) from error

    def reader(self, key: str) -> ObjectStoreReader:
        info = self.head(key)
        if info is None:
            raise ObjectMissingError(f"no object {key} in {self.name}")
        return ObjectStoreReader(self, key, info.size)

    def head(self, key: str) -> ObjectInfo | None:
        found = self._meta(check_key(key))
        return None if found is None else _info(found)

    def _meta(self, key: str) -> ObjectMeta | None:
        try:
            return obstore.head(self._client, key)
        except _FAILURES as error:
            failure = self._failure(error).translated(f"cannot look up {key}", self.name)
            if isinstance(failure, ObjectMissingError):
                return None
            raise failure from error

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        # obstore takes whole path segments for a prefix: ask for the segment's parent.
        parent = prefix.rpartition("/")[0]
        found: list[ObjectInfo] = []
        try:
            for page in obstore.list(self._client, prefix=parent or None):
                found.extend(
                    _info(meta)
                    for meta in page
                    if meta["path"].startswith(prefix) and _is_ours(meta["path"])
                )
        except _FAILURES as error:
            raise self._not_listed(error, prefix) from error
        found.sort(key=lambda info: info.key)
        return iter(found)

    def children(self, prefix: str) -> Sequence[str]:
        check_parent(prefix)
        try:
            found = obstore.list_with_delimiter(self._client, prefix=prefix.rstrip("/") or None)
        except _FAILURES as error:
            raise self._not_listed(error, prefix) from error
        names = [path[len(prefix) :].rstrip("/") + "/" for path in found["common_prefixes"]]
        names += [meta["path"][len(prefix) :] for meta in found["objects"]]
        return sorted(name for name in names if is_key_part(name.rstrip("/")))

    def delete(self, key: str) -> None:
        check_key(key)
        try:
            obstore.delete(self._client, key)
        except _FAILURES as error:
            failure = self._failure(error).translated(f"cannot delete {key}", self.name)
            if not isinstance(failure, ObjectMissingError):
                raise failure from error

    def read_range(self, key: str, start: int, length: int) -> Buffer:
        """Exactly ``length`` (> 0) bytes, without a copy; raises StoreError, CorruptObjectError."""
        try:
            content = obstore.get_range(self._client, key, start=start, length=length)
        except _FAILURES as error:
            failure = self._failure(error)
            if failure.is_past_the_end:
                raise _ends_early(f"{self.name}/{key}", start, length) from error
            raise failure.translated(f"cannot read {key}", self.name) from error
        view = memoryview(content)
        if len(view) != length:
            raise _ends_early(f"{self.name}/{key}", start, length)
        return view

    def _nothing(self, key: str) -> bytes:
        """Empty, for an empty range of an object that is there."""
        if self.head(key) is None:
            raise ObjectMissingError(f"no object {key} in {self.name}")
        return b""

    def _prove_stored(self, key: str, content: Buffer, answered: str | None) -> None:
        """Raise PutNotKeptError unless the object that was just put is there as it was sent.

        One look in most cases; where size and tags leave a doubt, the bytes are read back.
        """
        sent = memoryview(content).nbytes
        found = self._meta(key)
        if found is None:
            raise self._not_kept(key, sent, None)
        if found["size"] != sent:
            raise self._not_kept(key, sent, f"{found['size']} bytes")
        if self._tags.vouch(content, answered, found["e_tag"]):
            return
        try:
            stored = self.read(key)
        except ObjectMissingError as error:
            raise self._not_kept(key, sent, None) from error
        if stored != content:
            raise self._not_kept(key, sent, "other bytes")
        self._tags.note_right_bytes(found["e_tag"])

    def _not_kept(self, key: str, sent: int, held: str | None) -> PutNotKeptError:
        cause = "see what is wrong with the store, or a proxy or gateway in front of it"
        if held is None:
            # May have been an outage behind a gateway, or a look that came too early: sent again.
            hint = f"the object is not there, and is sent again with the next try; {cause}"
        else:
            hint = (
                f"{cause}; then move {key} out of the repository, because it is in the way of "
                "the next try: nothing is overwritten"
            )
        failure = PutNotKeptError(
            f"{self.name} acknowledged {sent} bytes under {key} and holds {held or 'nothing'}",
            hint=hint,
        )
        failure.retryable = held is None
        return failure

    def _not_written(self, error: Exception, key: str) -> StoreError:
        failure = self._failure(error).translated(f"cannot write {key}", self.name)
        if isinstance(failure, ObjectMissingError):
            # A put finds nothing missing but the bucket.
            return StoreError(failure.message, hint="see that the bucket exists")
        return failure

    def _not_listed(self, error: Exception, prefix: str) -> StoreError:
        failure = self._failure(error).translated(f"cannot list {prefix or 'objects'}", self.name)
        if isinstance(failure, ObjectMissingError):
            return StoreError(failure.message, hint="see that the bucket exists")
        return failure

    def _failure(self, error: Exception) -> Failure:
        return Failure(error, self._secrets)


class ObjectStoreReader:
    """Ranges of one object; each read is a request of its own, so nothing is held open."""

    def __init__(self, store: ObjectStore, key: str, size: int) -> None:
        self.size = size
        self._store = store
        self._key = key

    def read(self, start: int, length: int) -> Buffer:
        if start + length > self.size:
            raise _ends_early(f"{self._store.name}/{self._key}", start, length)
        return self._store.read_range(self._key, start, length) if length else b""

    def read_into(self, start: int, buffer: bytearray | memoryview) -> None:
        view = memoryview(buffer).cast("B")
        view[:] = self.read(start, len(view))

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _info(meta: ObjectMeta) -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], meta["last_modified"])


def _is_ours(path: str) -> bool:
    """Whether a listed path can be a key: buckets may hold other people's objects too."""
    with suppress(StoreError):
        return bool(check_key(path))
    return False


def _ends_early(what: str, start: int, length: int) -> CorruptObjectError:
    return CorruptObjectError(f"{what} ends before byte {start + length}, {length} were expected")
