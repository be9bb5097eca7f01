"""Which files of PGDATA belong into a backup; pure.

Source: PostgreSQL documentation, "Making a Base Backup Using the Low Level API"
and the lists in src/backend/backup/basebackup.c (versions 13 to 18), which
pg_basebackup follows. Names are bytes: nothing promises that they are UTF-8.
"""

from __future__ import annotations

import re

from pgrecall.model.relation_files import RELATION_FILE

# The directories are kept, empty; the server fills them itself.
EMPTIED_DIRECTORIES = frozenset(
    {
        b"pg_dynshmem",
        b"pg_notify",
        b"pg_replslot",
        b"pg_serial",
        b"pg_snapshots",
        b"pg_stat_tmp",
        b"pg_subtrans",
    }
)
# pg_wal is kept with these below it, each empty.
WAL_DIRECTORIES = (b"archive_status", b"summaries")

COPY_MARKER = b"pgrecall_copy.json"
# What a restore keeps of the PGDATA that it replaced, and its record (restore/kept.py).
KEPT_PREFIX = b"pgrecall_kept"
CONTROL_FILE = b"global/pg_control"

_EXCLUDED_FILES = frozenset(
    {
        b"backup_label",
        b"backup_manifest",
        b"current_logfiles.tmp",
        b"postgresql.auto.conf.tmp",
        b"postmaster.opts",
        b"postmaster.pid",
        b"tablespace_map",
        b"recovery.signal",
        b"standby.signal",
        COPY_MARKER,
    }
)
_EXCLUDED_ANYWHERE = (b"pg_internal.init", b"pgsql_tmp")

_TEMPORARY_RELATION = re.compile(rb"^t\d+_\d+(_(fsm|vm|init))?(\.\d+)?\Z")


def is_excluded_file(directory: bytes, name: bytes) -> bool:
    """True for a file that no backup holds: process state, temporary files, caches."""
    if name.startswith(_EXCLUDED_ANYWHERE):
        return True
    return not directory and (name in _EXCLUDED_FILES or name.startswith(KEPT_PREFIX))


def is_temporary_relation(name: bytes) -> bool:
    """True for a file of a temporary relation (``t3_16384``)."""
    return _TEMPORARY_RELATION.match(name) is not None


def unlogged_nodes(names: list[bytes]) -> frozenset[bytes]:
    """The relfilenodes of a directory that have an init fork: unlogged relations."""
    nodes = set()
    for name in names:
        match = RELATION_FILE.match(name)
        if match is not None and match.group(3) == b"init":
            nodes.add(match.group(1))
    return frozenset(nodes)


def is_unlogged_content(name: bytes, unlogged: frozenset[bytes]) -> bool:
    """True for a file of an unlogged relation other than its init fork: recovery resets it."""
    match = RELATION_FILE.match(name)
    return match is not None and match.group(1) in unlogged and match.group(3) != b"init"
