"""Which databases a selective restore brings back, and which files are zeros (fact 24); pure.

The server's own databases and everything in ``global`` always come. Of every other database that
was not asked for, the relation files are sparse zero files of the right size, so that WAL replay
finds them; what else its directory holds comes whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from pgrecall.errors import UsageError
from pgrecall.model.file_table import FILE, FileTable
from pgrecall.model.relation_files import relation_segment_number

ALWAYS = ("postgres", "template0", "template1")
#: FirstNormalObjectId: what has a lower oid was made by initdb.
_FIRST_USER_OID = 16384

_DATABASE = re.compile(rb"^(?:base|pg_tblspc/\d+/PG_[^/]+)/(\d+)\Z")
# report_invalid_page in xlogutils.c
_INVALID_PAGE = re.compile(
    r"WARNING:  page (\d+) of relation (\S+) (?:is uninitialized|does not exist)"
)
_RELATION = re.compile(r"^(?:base|pg_tblspc/\d+/PG_[^/]+)/(\d+)/")


class Selection(msgspec.Struct, frozen=True):
    """``databases`` come back, ``others`` do not: names; ``zeroed``: the oids of the others."""

    databases: tuple[str, ...]
    others: tuple[str, ...]
    zeroed: frozenset[int]


def select(wanted: Sequence[str], known: Iterable[tuple[int, str]]) -> Selection:
    """Choose by name from ``known`` (oid and name, as recorded at one or more moments).

    Raises UsageError for a name that nobody has recorded, with those that are.
    """
    pairs = sorted(set(known))
    names = {name for _, name in pairs}
    missing = [name for name in wanted if name not in names]
    if missing:
        shown = ", ".join(repr(name) for name in sorted(names - set(ALWAYS)))
        raise UsageError(
            f"there is no database {', '.join(repr(name) for name in missing)} in this backup",
            hint=f"there are: {shown}" if shown else "there is none but the server's own",
        )
    # One oid may have had two names, one name two oids: what was ever asked for comes.
    kept = {oid for oid, name in pairs if name in wanted or name in ALWAYS}
    others = {oid: name for oid, name in pairs if oid not in kept and oid >= _FIRST_USER_OID}
    return Selection(
        tuple(dict.fromkeys(wanted)), tuple(sorted(set(others.values()))), frozenset(others)
    )


def zero_files(table: FileTable, selection: Selection) -> frozenset[int]:
    """Indexes of the files that are restored as zeros."""
    return frozenset(
        index
        for index, kind in enumerate(table.kinds)
        if kind == FILE and _is_zero(table.path(index), selection.zeroed)
    )


def _is_zero(path: bytes, zeroed: frozenset[int]) -> bool:
    directory, _, name = path.rpartition(b"/")
    match = _DATABASE.match(directory)
    if match is None or int(match.group(1)) not in zeroed:
        return False
    return relation_segment_number(directory, name) is not None


def invalid_pages(log: str, zeroed: frozenset[int]) -> list[str]:
    """What a server's log says of invalid pages in relations that are no zeros on purpose."""
    found = []
    for page, relation in _INVALID_PAGE.findall(log):
        match = _RELATION.match(relation)
        if match is None or int(match.group(1)) not in zeroed:
            found.append(f"page {page} of {relation}")
    return list(dict.fromkeys(found))
