"""Who is who: the repository, a server's generations, and who owns its archive.

All are small records that are written once and never changed (records.py). The
numbered ones grow by one; the newest counts. Light.

A **generation** is one PostgreSQL system identifier under a server's name; a new
one begins after pg_upgrade or a fresh initdb, when the operator says so. The
**owner** of an archive is the original server as long as there is no record;
a restored copy becomes it only by a record (``--take-over``), because nothing in
a copy's WAL tells it from production's (facts 1 and 2).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import datetime

from pgrecall.codec.digests import plain_raw_key
from pgrecall.errors import (
    CorruptObjectError,
    DataDirectoryError,
    IdentityError,
    KeyMissingError,
    NotEncryptedError,
    NotOwnerError,
    ObjectMissingError,
    RepositoryError,
    UsageError,
)
from pgrecall.model.lsn import Lsn
from pgrecall.repository import layout
from pgrecall.repository.records import (
    Record,
    decode_record,
    encode_record,
    format_time,
    parse_time,
)
from pgrecall.store.base import SUITE_AES, SUITE_NONE, Store

FORMAT = 1
COPY_MARKER = "pgrecall_copy.json"

_MAXIMUM_MARKER_BYTES = 65536
_MAXIMUM_TRIES = 100


class RootKey:
    """The first data key of an encrypted repository: its id, and what tells it from others."""

    __slots__ = ("check", "key_id")

    def __init__(self, key_id: str, check: bytes) -> None:
        self.key_id = key_id
        self.check = check


class RepositoryIdentity:
    """What ``repository.json`` says: ``repository_id`` is 32 hexadecimal digits.

    ``root`` None: the repository is not encrypted.
    """

    __slots__ = ("created_at", "format", "repository_id", "root", "suite")

    def __init__(
        self, repository_id: str, created_at: datetime, root: RootKey | None = None
    ) -> None:
        self.format = FORMAT
        self.suite = SUITE_NONE if root is None else SUITE_AES
        self.repository_id = repository_id
        self.created_at = created_at
        self.root = root

    def raw_key(self) -> bytes:
        """The 32 byte key of raw digests in this repository (fact 5)."""
        return plain_raw_key(self.repository_id)

    def record(self) -> Record:
        """The fields that are stored."""
        root = self.root
        keys = [] if root is None else [{"key_id": root.key_id, "check": root.check.hex()}]
        return {
            "format": FORMAT,
            "repository_id": self.repository_id,
            "created_at": format_time(self.created_at),
            "suite": self.suite,
            "keys": keys,
        }


class System:
    """What tells a PostgreSQL system from others; sizes in bytes, ``block_bytes`` of data pages."""

    __slots__ = ("block_bytes", "major_version", "segment_bytes", "system_identifier")

    def __init__(
        self, system_identifier: int, major_version: int, segment_bytes: int, block_bytes: int
    ) -> None:
        self.system_identifier = system_identifier
        self.major_version = major_version
        self.segment_bytes = segment_bytes
        self.block_bytes = block_bytes

    def record(self) -> Record:
        """The fields that are stored; the identifier as text, it does not fit a JSON number."""
        return {
            "system_identifier": str(self.system_identifier),
            "major_version": self.major_version,
            "segment_bytes": self.segment_bytes,
            "block_bytes": self.block_bytes,
        }


class Generation(System):
    """One system under a server; ``first_seen_at`` is aware."""

    __slots__ = ("first_seen_at", "number")

    def __init__(self, number: int, fields: Record) -> None:
        """``fields`` as they are stored; raises KeyError, TypeError, ValueError otherwise."""
        super().__init__(
            int(fields["system_identifier"]),
            int(fields["major_version"]),
            int(fields["segment_bytes"]),
            int(fields["block_bytes"]),
        )
        self.number = number
        self.first_seen_at = parse_time(fields["first_seen_at"])


class Owner:
    """Who took the archive over; ``taken_over_at`` is aware.

    ``restore_id`` is empty when an undo has given it back to the original server.
    """

    __slots__ = ("number", "restore_id", "taken_over_at", "timeline")

    def __init__(self, number: int, fields: Record) -> None:
        """``fields`` as they are stored; raises KeyError, TypeError, ValueError otherwise."""
        self.number = number
        self.restore_id = str(fields["restore_id"])
        self.timeline = int(fields["timeline"])
        self.taken_over_at = parse_time(fields["taken_over_at"])


# --- the repository ----------------------------------------------------------------


def create_repository(store: Store, now: datetime) -> RepositoryIdentity:
    """Write ``repository.json`` of one that is not encrypted; durable when it returns.

    ``store`` is opened without its anchor. Raises RepositoryError when there is
    a repository already: it is left as it is.
    """
    return found_repository(store, RepositoryIdentity(new_repository_id(), now))


def found_repository(store: Store, identity: RepositoryIdentity) -> RepositoryIdentity:
    """As create_repository, for an identity that was drawn before; ``store`` is the plain one."""
    if store.put(layout.REPOSITORY_KEY, [encode_record(identity.record())]):
        return identity
    found = read_repository(store)
    if found.repository_id != identity.repository_id:
        raise RepositoryError(
            f"{store.name} holds a repository already, made {format_time(found.created_at)}",
            hint="use it as it is, or choose another path, bucket or prefix",
        )
    return found


def open_repository(store: Store) -> RepositoryIdentity:
    """Read ``repository.json``, and see that the store encrypts as it says.

    Raises RepositoryError when there is none or when a newer pgrecall wrote it,
    KeyMissingError and NotEncryptedError when the settings say otherwise than the
    repository, CorruptObjectError when it is damaged, StoreError when that cannot be told.
    """
    identity = read_repository(store)
    if identity.suite == store.suite:
        return identity
    if identity.suite == SUITE_NONE:
        raise not_encrypted(store)
    raise KeyMissingError(
        f"{store.name} is encrypted, and its settings do not say how to open its keys",
        hint="set `encryption` and what it asks for in the table of the repository "
        "(docs/encryption.md)",
    )


def read_repository(store: Store) -> RepositoryIdentity:
    """Read ``repository.json``, which is never encrypted; raises as open_repository."""
    try:
        data = store.read(layout.REPOSITORY_KEY)
    except ObjectMissingError as error:
        raise RepositoryError(
            f"{store.name} holds no repository",
            hint="make one with `pgrecall init`; or is it not mounted, or the wrong place?",
        ) from error
    where = f"{layout.REPOSITORY_KEY} in {store.name}"
    fields = decode_record(data, where)
    suite = fields.get("suite")
    if fields.get("format") != FORMAT or suite not in (SUITE_NONE, SUITE_AES):
        raise RepositoryError(
            f"{where} has format {fields.get('format')!r}, encryption {suite!r}; "
            f"this pgrecall knows format {FORMAT}, encryption {SUITE_NONE!r} and {SUITE_AES!r}",
            hint="use the pgrecall that made it, or a newer one",
        )
    try:
        root = None
        if suite == SUITE_AES:
            first = fields["keys"][0]
            root = RootKey(str(first["key_id"]), bytes.fromhex(first["check"]))
        return RepositoryIdentity(
            str(fields["repository_id"]), parse_time(fields["created_at"]), root
        )
    except (LookupError, TypeError, ValueError) as error:
        raise CorruptObjectError(f"{where} lacks or garbles a field: {error}") from error


def not_encrypted(store: Store) -> NotEncryptedError:
    """The error for settings with encryption of a repository that has none."""
    return NotEncryptedError(
        f"{store.name} is not encrypted, and its settings have `encryption`",
        hint="a repository is encrypted from its beginning or never: take `encryption` out of its "
        "table, or make a new repository with `pgrecall init` in another place",
    )


# --- generations ---------------------------------------------------------------------


def latest_generation(store: Store, server: str) -> Generation | None:
    """The generation that is in force; None when the server was never introduced."""
    numbers = _numbers(store, layout.generations_prefix(server))
    return read_generation(store, server, numbers[-1]) if numbers else None


def generations(store: Store, server: str) -> list[Generation]:
    """All generations of a server, oldest first; empty when it was never introduced."""
    numbers = _numbers(store, layout.generations_prefix(server))
    return [read_generation(store, server, number) for number in numbers]


def generation_numbers(store: Store, server: str) -> list[int]:
    """Numbers of all generations of a server, ascending; empty when it was never introduced."""
    return _numbers(store, layout.generations_prefix(server))


def generation_of(
    store: Store, server: str, system_identifier: int, numbers: Sequence[int] | None = None
) -> Generation | None:
    """The newest generation with this system identifier; None when there is none.

    ``numbers``: what generation_numbers said, where that was asked just now.
    """
    listed = generation_numbers(store, server) if numbers is None else numbers
    for number in reversed(listed):
        generation = read_generation(store, server, number)
        if generation.system_identifier == system_identifier:
            return generation
    return None


def require_generation(
    store: Store,
    server: str,
    system_identifier: int,
    found_in: str,
    numbers: Sequence[int] | None = None,
) -> Generation:
    """As generation_of, but a system that is strange to the server is an IdentityError.

    ``found_in`` says where the identifier comes from, for the message.
    """
    generation = generation_of(store, server, system_identifier, numbers)
    if generation is not None:
        return generation
    latest = latest_generation(store, server)
    if latest is None:
        raise IdentityError(
            f"{store.name} does not know the server {server!r} yet",
            hint="introduce it with `pgrecall init`",
        )
    raise IdentityError(
        f"{found_in} has system identifier {system_identifier}; the server {server!r} "
        f"in {store.name} is {latest.system_identifier}",
        hint="another server uses this configuration; or, after pg_upgrade or a new initdb, "
        "open a new generation with `pgrecall server upgrade`",
    )


def add_generation(store: Store, server: str, system: System, now: datetime) -> Generation:
    """Open a new generation; durable when it returns.

    When the newest one says the same already, that one is returned.
    """
    said = system.record()
    for _ in range(_MAXIMUM_TRIES):
        latest = latest_generation(store, server)
        if latest is not None and latest.record() == said:
            return latest
        number = 1 if latest is None else latest.number + 1
        fields = {"number": number, **said, "first_seen_at": format_time(now)}
        if store.put(layout.generation_key(server, number), [encode_record(fields)]):
            return Generation(number, fields)
    raise _never_free(store, layout.generations_prefix(server))


# --- owners ----------------------------------------------------------------------------


def latest_owner(store: Store, server: str) -> Owner | None:
    """Who owns the archive now; None for the original server."""
    numbers = _numbers(store, layout.owners_prefix(server))
    if not numbers:
        return None
    key = layout.owner_key(server, numbers[-1])
    fields, where = _read_record(store, key, numbers[-1])
    try:
        return Owner(numbers[-1], fields)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptObjectError(f"{where} lacks or garbles a field: {error}") from error


def add_owner(store: Store, server: str, *, restore_id: str, timeline: int, now: datetime) -> Owner:
    """Record that a restored copy takes the archive over; durable when it returns.

    An empty ``restore_id``: the original server has it back.
    """
    for _ in range(_MAXIMUM_TRIES):
        latest = latest_owner(store, server)
        if latest is not None and (latest.restore_id, latest.timeline) == (restore_id, timeline):
            return latest
        number = 1 if latest is None else latest.number + 1
        fields = {
            "number": number,
            "restore_id": restore_id,
            "timeline": timeline,
            "taken_over_at": format_time(now),
        }
        if store.put(layout.owner_key(server, number), [encode_record(fields)]):
            return Owner(number, fields)
    raise _never_free(store, layout.owners_prefix(server))


def read_copy_marker(pgdata: str) -> str | None:
    """The restore id of a restored copy; None when ``pgdata`` is no copy.

    Raises DataDirectoryError when the marker is there and cannot be read: a copy
    must not pass for the original because of that.
    """
    marker = _read_marker(pgdata)
    if marker is None:
        return None
    restore_id = marker.get("restore_id")
    if not isinstance(restore_id, str) or not restore_id:
        raise _bad_marker(f"{pgdata}/{COPY_MARKER}")
    return restore_id


def is_partial_copy(pgdata: str) -> bool:
    """True for a restored copy that lacks some databases; raises as read_copy_marker."""
    marker = _read_marker(pgdata)
    return marker is not None and marker.get("is_partial") is True


def copy_planned_to(pgdata: str) -> Lsn | None:
    """Up to where the plan of the restore that made this copy has looked at the WAL.

    None when ``pgdata`` is no copy; 0 where the marker does not say. Raises
    DataDirectoryError as read_copy_marker.
    """
    marker = _read_marker(pgdata)
    if marker is None:
        return None
    try:
        return Lsn.parse(str(marker.get("planned_to", "0/0")))
    except UsageError as error:
        raise _bad_marker(f"{pgdata}/{COPY_MARKER}") from error


def parse_copy_marker(content: bytes, where: str) -> str:
    """The restore id in a marker's content; raises DataDirectoryError, naming ``where``."""
    restore_id = _parse_marker(content, where).get("restore_id")
    if not isinstance(restore_id, str) or not restore_id:
        raise _bad_marker(where)
    return restore_id


def _read_marker(pgdata: str) -> dict[str, object] | None:
    path = f"{pgdata}/{COPY_MARKER}"
    try:
        with open(path, "rb") as file:
            content = file.read(_MAXIMUM_MARKER_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataDirectoryError(f"cannot read {path}: {error.strerror}") from error
    return _parse_marker(content, path)


def _parse_marker(content: bytes, path: str) -> dict[str, object]:
    try:
        marker = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _bad_marker(path) from error
    if not isinstance(marker, dict):
        raise _bad_marker(path)
    return marker


def require_owner(store: Store, server: str, pgdata: str) -> str | None:
    """The restore id of the writer (None: the original), if it owns the archive.

    Raises NotOwnerError otherwise (fact 2).
    """
    return require_writer(store, server, read_copy_marker(pgdata), pgdata)


def require_writer(store: Store, server: str, writer: str | None, pgdata: str) -> str | None:
    """``writer`` (the restore id of a copy, None: the original server) if it owns the archive.

    ``pgdata`` names it in messages. Raises NotOwnerError otherwise (fact 2).
    """
    owner = latest_owner(store, server)
    owned_by = (owner.restore_id or None) if owner is not None else None
    if writer == owned_by:
        return writer
    if writer is None:
        assert owner is not None
        raise NotOwnerError(
            f"the archive of {server!r} in {store.name} was taken over by the restored copy "
            f"{owner.restore_id} at {format_time(owner.taken_over_at)}; {pgdata} is the server "
            "that was replaced",
            hint="stop this server; to have it write again, restore the archive's newest state "
            "and take over with that",
        )
    holder = "the original server" if owned_by is None else f"the restored copy {owned_by}"
    raise NotOwnerError(
        f"{pgdata} is the restored copy {writer}; the archive of {server!r} in {store.name} "
        f"belongs to {holder}",
        hint="set archive_mode = off in the copy; if it is to replace the server, restore it "
        "with --take-over",
    )


# --- records -----------------------------------------------------------------------------


def _numbers(store: Store, prefix: str) -> list[int]:
    return sorted(layout.record_number(name) for name in store.children(prefix))


def _read_record(store: Store, key: str, number: int) -> tuple[Record, str]:
    where = f"{key} in {store.name}"
    fields = decode_record(store.read(key), where)
    if fields.get("number") != number:
        raise CorruptObjectError(f"{where} says that its number is {fields.get('number')!r}")
    return fields, where


def read_generation(store: Store, server: str, number: int) -> Generation:
    """Generation ``number`` of a server; raises ObjectMissingError, CorruptObjectError."""
    fields, where = _read_record(store, layout.generation_key(server, number), number)
    try:
        return Generation(number, fields)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptObjectError(f"{where} lacks or garbles a field: {error}") from error


def _never_free(store: Store, prefix: str) -> RepositoryError:
    return RepositoryError(
        f"no number below {prefix} in {store.name} could be taken",
        hint="others write there all the time, or the store does not list what it holds",
    )


def _bad_marker(path: str) -> DataDirectoryError:
    return DataDirectoryError(
        f"{path} is damaged: whose copy this is cannot be told",
        hint="restore writes this file; put it back from the restore's report, or set "
        "archive_mode = off",
    )


def new_repository_id() -> str:
    """A random UUID (RFC 9562, version 4); the module uuid is slow to import."""
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    return raw.hex()
