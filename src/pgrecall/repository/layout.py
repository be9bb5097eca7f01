"""Where everything lies in a repository: pure functions from names to keys and back.

Nothing here reads or writes. Numbers are decimal with at least four digits
(they widen beyond 9999, so nothing may rely on the order of keys to order
numbers), timelines and logs are eight upper-case hexadecimal digits.
"""

from __future__ import annotations

from pgrecall.errors import RepositoryError, UsageError
from pgrecall.model.wal_files import HISTORY, WalFile

REPOSITORY_KEY = "repository.json"
KEYS_PREFIX = "keys/"
ORIGINS_PREFIX = "origins/"
SERVERS_PREFIX = "servers/"

#: So many records of a chain lie below one prefix: its end is found with two small listings.
CHAIN_PART_RECORDS = 1000

PACK = "pack"
MANIFEST = "manifest"
MANIFEST_PART = "manifest-part"
DIGESTS = "digests"
COMPLETE = "complete"

_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_UPPER_HEX = frozenset("0123456789ABCDEF")


def encode_server(name: str) -> str:
    """The key part of a server name: each UTF-8 byte outside ``[A-Za-z0-9_-]`` becomes ``%XX``.

    Raises UsageError when the name is empty or cannot be written as UTF-8.
    """
    if not name:
        raise UsageError("a server needs a name", hint="name it in the section [servers.NAME]")
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(
            f"the server name {name!a} is not valid Unicode",
            hint="use the name as it is written in the configuration file, in UTF-8",
        ) from None
    return "".join(chr(byte) if chr(byte) in _PLAIN else f"%{byte:02X}" for byte in encoded)


def decode_server(part: str) -> str:
    """The server name of a key part; raises RepositoryError when pgrecall writes no such part."""
    raw = bytearray()
    position = 0
    while position < len(part):
        character = part[position]
        if character == "%":
            digits = part[position + 1 : position + 3]
            if len(digits) != 2 or not _UPPER_HEX.issuperset(digits):
                raise _bad_part(part)
            raw.append(int(digits, 16))
            position += 3
        elif character in _PLAIN:
            raw.append(ord(character))
            position += 1
        else:
            raise _bad_part(part)
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise _bad_part(part) from None
    if not name or encode_server(name) != part:
        raise _bad_part(part)
    return name


def server_prefix(server: str) -> str:
    """Prefix of everything that belongs to one server, with its final slash."""
    return f"{SERVERS_PREFIX}{encode_server(server)}/"


# --- keys ----------------------------------------------------------------------


def envelopes_prefix(key_id: str) -> str:
    """Prefix of the envelopes of a data key."""
    return f"{KEYS_PREFIX}{key_id}/"


def envelope_key(key_id: str, number: int) -> str:
    """Key of envelope ``number`` (1 and up) of a data key."""
    return f"{envelopes_prefix(key_id)}{number_part(number)}.json"


# --- numbered records ----------------------------------------------------------


def generations_prefix(server: str) -> str:
    """Prefix of the generation records of a server."""
    return f"{server_prefix(server)}generations/"


def generation_key(server: str, number: int) -> str:
    """Key of generation record ``number`` (1 and up)."""
    return f"{generations_prefix(server)}{number_part(number)}.json"


def owners_prefix(server: str) -> str:
    """Prefix of the owner records of a server."""
    return f"{server_prefix(server)}owners/"


def owner_key(server: str, number: int) -> str:
    """Key of owner record ``number`` (1 and up)."""
    return f"{owners_prefix(server)}{number_part(number)}.json"


def enablements_prefix(server: str) -> str:
    """Prefix of the records of what ``wal enable`` changed on a server."""
    return f"{server_prefix(server)}enablements/"


def enablement_key(server: str, number: int) -> str:
    """Key of enablement record ``number`` (1 and up)."""
    return f"{enablements_prefix(server)}{number_part(number)}.json"


def retention_prefix(server: str) -> str:
    """Prefix of the records of what was held, expired, brought back and purged."""
    return f"{server_prefix(server)}retention/"


def retention_key(server: str, number: int) -> str:
    """Key of retention record ``number`` (1 and up)."""
    return f"{retention_prefix(server)}{number_part(number)}.json"


def leases_prefix(server: str, lease_id: str = "") -> str:
    """Prefix of all leases of a server, or of the records of one."""
    return f"{server_prefix(server)}leases/" + (f"{lease_id}/" if lease_id else "")


def lease_key(server: str, lease_id: str, number: int) -> str:
    """Key of record ``number`` (1 and up) of a lease: each renewal is one."""
    return f"{leases_prefix(server, lease_id)}{number_part(number)}.json"


def branches_prefix(server: str, generation: int) -> str:
    """Prefix of the records of branches that may go on beyond a fork."""
    return f"{server_prefix(server)}branches/{number_part(generation)}/"


def branch_key(server: str, generation: int, number: int) -> str:
    """Key of branch record ``number`` (1 and up)."""
    return f"{branches_prefix(server, generation)}{number_part(number)}.json"


def damage_prefix(server: str, backup_id: str = "") -> str:
    """Prefix of the marks of damaged backups, or of one backup's."""
    prefix = f"{server_prefix(server)}damage/"
    return f"{prefix}{backup_id}/" if backup_id else prefix


def damage_key(server: str, backup_id: str, number: int) -> str:
    """Key of mark ``number`` (1 and up) of a backup."""
    return f"{damage_prefix(server, backup_id)}{number_part(number)}.json"


def verified_prefix(server: str, run_id: str = "") -> str:
    """Prefix of the records of how far verifications came, or of one run's."""
    prefix = f"{server_prefix(server)}verified/"
    return f"{prefix}{run_id}/" if run_id else prefix


def verified_key(server: str, run_id: str, number: int) -> str:
    """Key of record ``number`` (1 and up) of one verification."""
    return f"{verified_prefix(server, run_id)}{number_part(number)}.json"


def origin_key(repository_id: str) -> str:
    """Key of the record that objects of another repository were copied into this one."""
    return f"{ORIGINS_PREFIX}{repository_id}.json"


def record_number(name: str) -> int:
    """The number of a record named ``NNNN.json``; raises RepositoryError for any other name."""
    stem, dot, suffix = name.partition(".")
    if not dot or suffix != "json":
        raise RepositoryError(f"{name!r} is not the name of a numbered record")
    return _parse_number(stem, name)


def number_of(name: str) -> int:
    """The number that is the whole of a name; raises RepositoryError for any other name."""
    return _parse_number(name, name)


# --- backups and dumps -------------------------------------------------------------

# By the kind in their ids, BACKUP and DUMP of model.ids, which is too heavy for this module.
_BACKUP, _DUMP = "b", "d"
_HOMES = {_BACKUP: "backups", _DUMP: "dumps"}


class BackupKey:
    """A parsed key below a backup or dump.

    ``kind`` is PACK, DIGESTS, MANIFEST, MANIFEST_PART or COMPLETE; ``number`` counts packs, digest
    objects and manifest parts; it is 0 for the two kinds that are single.
    """

    __slots__ = ("backup_id", "kind", "number", "server")

    def __init__(self, server: str, backup_id: str, kind: str, number: int = 0) -> None:
        self.server = server
        self.backup_id = backup_id
        self.kind = kind
        self.number = number

    def __repr__(self) -> str:
        return f"BackupKey({self.server!r}, {self.backup_id!r}, {self.kind!r}, {self.number})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BackupKey) and repr(other) == repr(self)

    def __hash__(self) -> int:
        return hash(repr(self))


def backups_prefix(server: str) -> str:
    """Prefix of all backups of a server."""
    return f"{server_prefix(server)}{_HOMES[_BACKUP]}/"


def dumps_prefix(server: str) -> str:
    """Prefix of all dumps of a server."""
    return f"{server_prefix(server)}{_HOMES[_DUMP]}/"


def backup_prefix(server: str, backup_id: str) -> str:
    """Prefix of one backup's (or dump's, its id tells) objects, with its final slash."""
    home = _HOMES.get(backup_id[:1], _HOMES[_BACKUP])
    return f"{server_prefix(server)}{home}/{backup_id}/"


def pack_prefix(server: str, backup_id: str) -> str:
    """Prefix of the keys of a backup's packs."""
    return f"{backup_prefix(server, backup_id)}pack-"


def pack_key(server: str, backup_id: str, number: int) -> str:
    """Key of pack ``number`` of a backup."""
    return f"{pack_prefix(server, backup_id)}{number_part(number)}"


def digests_key(server: str, backup_id: str, number: int) -> str:
    """Key of object ``number`` of a backup's block digests."""
    return f"{backup_prefix(server, backup_id)}digests-{number_part(number)}"


def manifest_key(server: str, backup_id: str) -> str:
    """Key of a backup's manifest root."""
    return f"{backup_prefix(server, backup_id)}manifest"


def manifest_part_key(server: str, backup_id: str, number: int) -> str:
    """Key of part ``number`` of a backup's manifest."""
    return f"{backup_prefix(server, backup_id)}manifest-{number_part(number)}"


def complete_key(server: str, backup_id: str) -> str:
    """Key of the completion record, written last: without it there is no backup."""
    return f"{backup_prefix(server, backup_id)}complete.json"


def parse_backup_key(key: str) -> BackupKey:
    """Take the key of a backup's or dump's object apart; RepositoryError when it is none."""
    parts = key.split("/")
    if len(parts) != 5 or parts[0] != "servers" or not parts[3]:
        raise _bad_key(key, "a backup's object")
    if parts[2] != _HOMES.get(parts[3][:1], _HOMES[_BACKUP]):
        raise _bad_key(key, "a backup's object")
    server, backup_id, name = decode_server(parts[1]), parts[3], parts[4]
    if name == "manifest":
        return BackupKey(server, backup_id, MANIFEST)
    if name == "complete.json":
        return BackupKey(server, backup_id, COMPLETE)
    stems = (("pack-", PACK), ("digests-", DIGESTS), ("manifest-", MANIFEST_PART))
    for stem, kind in stems:
        if name.startswith(stem):
            return BackupKey(server, backup_id, kind, _parse_number(name[len(stem) :], key))
    raise _bad_key(key, "a backup's object")


def drills_prefix(server: str) -> str:
    """Prefix of the records of a server's drills."""
    return f"{server_prefix(server)}drills/"


# --- the journal of runs ----------------------------------------------------------


def runs_prefix(server: str, month: str = "") -> str:
    """Prefix of the run records of a server, narrowed to a month (``2026-11``, UTC)."""
    return f"{server_prefix(server)}runs/" + (f"{month}/" if month else "")


def run_key(server: str, run_id: str) -> str:
    """Key of the record of a run; its month is that of the moment inside the run's identity."""
    stamp = run_id.split("-")[1]
    return f"{runs_prefix(server, f'{stamp[:4]}-{stamp[4:6]}')}{run_id}.json"


def chains_prefix(server: str, repository_id: str = "") -> str:
    """Prefix of the chains of run records, or of those that were begun in one repository."""
    prefix = f"{server_prefix(server)}chains/"
    return f"{prefix}{repository_id}/" if repository_id else prefix


def chain_prefix(server: str, repository_id: str, writer: str, part: int | None = None) -> str:
    """Prefix of one writer's chain, or of a part of it; a thousand records share a part."""
    prefix = f"{chains_prefix(server, repository_id)}{encode_server(writer)}/"
    return prefix if part is None else f"{prefix}{number_part(part)}/"


def chain_key(server: str, repository_id: str, writer: str, sequence: int) -> str:
    """Key of one record in a writer's chain."""
    part = sequence // CHAIN_PART_RECORDS
    return f"{chain_prefix(server, repository_id, writer, part)}{number_part(sequence)}.json"


# --- the WAL archive ---------------------------------------------------------------


def wal_prefix(
    server: str, generation: int, timeline: int | None = None, log: int | None = None
) -> str:
    """Prefix of a generation's archive, narrowed to a timeline and to one log (LSN >> 32) of it."""
    prefix = f"{server_prefix(server)}wal/{number_part(generation)}/"
    if timeline is None:
        return prefix
    prefix += f"{timeline:08X}/"
    return prefix if log is None else f"{prefix}{log:08X}/"


def wal_key(server: str, generation: int, file: WalFile) -> str:
    """Key of a file of pg_wal."""
    log = None if file.kind == HISTORY else file.log
    return wal_prefix(server, generation, file.timeline, log) + file.name


def wal_index_prefix(server: str, generation: int, timeline: int) -> str:
    """Prefix of the indexes of one timeline that were made later than their segments."""
    return f"{server_prefix(server)}wal-index/{number_part(generation)}/{timeline:08X}/"


def wal_index_key(server: str, generation: int, file: WalFile) -> str:
    """Key of the index of a segment that was made later than its object."""
    prefix = wal_index_prefix(server, generation, file.timeline)
    return f"{prefix}{file.log:08X}/{file.name}"


def rollups_prefix(server: str, generation: int, timeline: int) -> str:
    """Prefix of the roll-ups of indexes of one timeline; each is named after its log directory."""
    return f"{server_prefix(server)}wal-rollups/{number_part(generation)}/{timeline:08X}/"


def rollup_key(server: str, generation: int, timeline: int, log: str) -> str:
    """Key of the indexes of one log directory (``log``: its name, eight digits)."""
    return rollups_prefix(server, generation, timeline) + log


TAILS = "tails"
GAPS = "gaps"
"""Beside the timelines of a generation: the tails of unfinished segments, recorded gaps."""


def tails_prefix(server: str, generation: int, segment: str = "") -> str:
    """Prefix of all tails of a generation, or of one segment's."""
    prefix = f"{wal_prefix(server, generation)}{TAILS}/"
    return f"{prefix}{segment[:8]}/{segment}/" if segment else prefix


def tail_name(start: int, end: int) -> str:
    """Last part of a tail's key: the LSNs of its first byte and behind its last, 16 digits each."""
    return f"{start:016X}-{end:016X}"


def tail_key(server: str, generation: int, segment: str, name: str) -> str:
    """Key of one tail (``name`` by tail_name) of a segment."""
    return tails_prefix(server, generation, segment) + name


def parse_tail_name(name: str) -> tuple[int, int]:
    """Start and end of a tail; raises RepositoryError when pgrecall writes no such name."""
    start, dash, end = name.partition("-")
    if not dash or len(start) != 16 or len(end) != 16 or not _UPPER_HEX.issuperset(start + end):
        raise _bad_key(name, "the tail of a segment")
    return int(start, 16), int(end, 16)


def gaps_prefix(server: str, generation: int) -> str:
    """Prefix of the recorded gaps of a generation."""
    return f"{wal_prefix(server, generation)}{GAPS}/"


def gap_key(server: str, generation: int, timeline: int, start: int, end: int) -> str:
    """Key of the record of a gap: bytes from ``start`` to ``end`` were never received."""
    name = f"{timeline:08X}-{tail_name(start, end)}.json"
    return gaps_prefix(server, generation) + name


def timeline_of_directory(name: str) -> int | None:
    """The timeline of a directory right below a generation; None: it is no timeline's."""
    stem = name.removesuffix("/")
    if stem == name or len(stem) != 8 or not _UPPER_HEX.issuperset(stem):
        return None
    return int(stem, 16)


def parse_wal_key(key: str) -> tuple[str, int, WalFile]:
    """Server, generation and file of a key of the archive.

    Raises RepositoryError when the key is not one that pgrecall writes,
    WalFormatError when its last part is no name of PostgreSQL's.
    """
    parts = key.split("/")
    if len(parts) not in (6, 7) or parts[0] != "servers" or parts[2] != "wal":
        raise _bad_key(key, "a file of the WAL archive")
    server = decode_server(parts[1])
    generation = _parse_number(parts[3], key)
    file = WalFile(parts[-1])
    if wal_key(server, generation, file) != key:
        raise _bad_key(key, "a file of the WAL archive")
    return server, generation, file


def number_part(number: int) -> str:
    """A number as a part of a key: decimal, four digits at least."""
    if number < 0:
        raise ValueError(f"numbers in keys are not negative: {number}")
    return f"{number:04d}"


def _parse_number(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdigit()) or number_part(int(text)) != text:
        raise RepositoryError(f"{whole!r} has no number where one belongs")
    return int(text)


def _bad_part(part: str) -> RepositoryError:
    return RepositoryError(
        f"{part!r} is not a server's directory as pgrecall writes them",
        hint="something else wrote below servers/; move it out of the repository",
    )


def _bad_key(key: str, what: str) -> RepositoryError:
    return RepositoryError(
        f"{key!r} is not the key of {what}",
        hint="something else wrote into the repository; move it out",
    )
