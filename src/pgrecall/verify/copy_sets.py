"""Recovery sets in a copy: a set's record goes last, when all that it consists of is there."""

from __future__ import annotations

from pgrecall.errors import RepositoryError, WalMissingError
from pgrecall.model.lsn import Lsn
from pgrecall.model.sets import SetRecord
from pgrecall.repository import name_layout
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.dump_catalog import DumpCatalog
from pgrecall.repository.identity import generation_numbers, read_generation
from pgrecall.repository.retention_log import RetentionState, read_state
from pgrecall.repository.set_catalog import SetCatalog
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.store.base import Store
from pgrecall.verify.copy_plan import RecordToCopy


def sets_to_copy(source: Store, target: Store, server: str) -> list[RecordToCopy]:
    """The sets that ``target`` lacks, has not let expire, and has all parts and WAL of.

    Raises StoreError, CorruptObjectError.
    """
    catalog = SetCatalog(source, server)
    records, _ = catalog.survey()
    if not records:
        return []
    state = read_state(target, server)
    present = {one.backup_id for one in Catalog(target, server).survey(state=state)[0]}
    present |= {one.backup_id for one in DumpCatalog(target, server).survey(state=state)[0]}
    there = set(SetCatalog(target, server).ids())
    found = []
    for record in records:
        if record.set_id in there or not state.is_listed(record.set_id):
            continue
        if present.issuperset(record.parts) and _has_rest(target, record, state):
            key = name_layout.item_prefix(server, record.set_id)
            info = source.head(key)
            if info is not None:
                found.append(RecordToCopy(key, key, info.size))
    return found


def _has_rest(target: Store, record: SetRecord, state: RetentionState) -> bool:
    """Whether the capture is there, and the WAL up to the restore point."""
    capture = f"{name_layout.captures_prefix(record.server)}{record.capture_id}.json"
    if target.head(capture) is None:
        return False
    point = record.point
    if point is None:
        return True
    if record.generation not in generation_numbers(target, record.server):
        return False
    generation = read_generation(target, record.server, record.generation)
    archive = WalArchive(target, record.server, generation)
    archive.hide(state.hidden_wal(generation.number))
    try:
        history = archive.history(point.timeline)
    except (WalMissingError, RepositoryError):
        return False
    return archive.first_gap(history, Lsn.parse(point.start_lsn), Lsn.parse(point.lsn)) is None
