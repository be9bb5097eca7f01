"""What a backup needs of older ones: the one place that reads references from manifests.

Whatever a manifest may refer to besides packs and block digests is added here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable

from pgrecall.model.manifest import Completion
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.manifests import ManifestReader

Referred = dict[str, dict[str, int]]
"""Keys of objects and their stored bytes, by the id of the backup under which they lie."""


def referred(server: str, manifest: ManifestReader) -> Referred:
    """The objects of other backups that a manifest refers to.

    Raises CorruptObjectError, ObjectMissingError, StoreError: then it is not known.
    """
    found: Referred = {}
    for pack in manifest.packs():
        if pack.owner:
            key = layout.pack_key(server, pack.owner, pack.number)
            found.setdefault(pack.owner, {})[key] = pack.stored_bytes
    for digests in manifest.digests():
        if digests.owner:
            key = layout.digests_key(server, digests.owner, digests.number)
            found.setdefault(digests.owner, {})[key] = digests.stored_bytes
    return found


def needed_of(catalog: Catalog, owners: Iterable[str], by: Iterable[Completion]) -> Referred:
    """Of the backups ``owners``, the objects that those in ``by`` need.

    Reads the manifests of those whose completion record says that they refer to one of the
    owners. Raises as ``referred``.
    """
    wanted = set(owners)
    needed: Referred = {}
    for completion in by:
        if not wanted.intersection(completion.references):
            continue
        for owner, keys in referred(catalog.server, catalog.manifest(completion)).items():
            if owner in wanted:
                needed.setdefault(owner, {}).update(keys)
    return needed
