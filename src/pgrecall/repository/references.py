"""What a backup needs of older ones: the one place that reads references from manifests.

Whatever a manifest may refer to besides packs is added here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable

from pgrecall.model.manifest import Completion, PackEntry
from pgrecall.repository.catalog import Catalog


def owners_of(catalog: Catalog, completion: Completion) -> tuple[str, ...]:
    """Ids of the other backups whose objects this one needs, sorted.

    From the completion record; where that does not say it, from the manifest. Raises
    CorruptObjectError, ObjectMissingError, StoreError: then it is not known.
    """
    if completion.refers_to is not None:
        return completion.refers_to
    if completion.kind == "full":
        return ()
    packs = catalog.manifest(completion).packs()
    return tuple(sorted(referred(packs)))


def referred(packs: Iterable[PackEntry]) -> dict[str, dict[int, int]]:
    """Numbers and stored bytes of packs of other backups, by the id of their owner."""
    found: dict[str, dict[int, int]] = {}
    for pack in packs:
        if pack.owner:
            found.setdefault(pack.owner, {})[pack.number] = pack.stored_bytes
    return found


def needed_of(
    catalog: Catalog, owners: Iterable[str], by: Iterable[tuple[Completion, tuple[str, ...]]]
) -> dict[str, dict[int, int]]:
    """Of the backups ``owners``, the packs that those in ``by`` need: numbers and bytes.

    ``by``: completion records, each with what ``owners_of`` says of it. Reads the manifests
    of those that refer to one of the owners. Raises as ``owners_of``.
    """
    wanted = set(owners)
    needed: dict[str, dict[int, int]] = {}
    for completion, refers_to in by:
        if not wanted.intersection(refers_to):
            continue
        for owner, numbers in referred(catalog.manifest(completion).packs()).items():
            if owner in wanted:
                needed.setdefault(owner, {}).update(numbers)
    return needed
