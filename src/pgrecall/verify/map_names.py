"""Name maps as two repositories call them: an encrypted one keys the names, each by its own key.

Only the records of names tell the digests of the maps; a keyed name does not give it back.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from pgrecall.errors import CorruptObjectError, ObjectMissingError
from pgrecall.repository import name_layout
from pgrecall.repository.content_names import content_name, names_alike
from pgrecall.repository.identity import generation_numbers
from pgrecall.repository.name_maps import referred_digests
from pgrecall.store.base import ObjectInfo, Store
from pgrecall.verify.copy_plan import RecordToCopy, missing

_READERS = 16


def maps_to_copy(
    source: Store, target: Store, generation: tuple[str, int], records: Iterable[ObjectInfo]
) -> Iterator[RecordToCopy]:
    """The maps that ``records`` of the source refer to and that the target lacks.

    ``generation``: of a server, by number. A record that cannot be read is passed over here: it
    is copied afterwards, or named. Where both call a map alike no record is read: then it is all
    that the target lacks. Raises StoreError.
    """
    prefix = name_layout.name_maps_prefix(*generation)
    if names_alike(source, target):
        for info in missing(source.list(prefix), target.list(prefix)):
            yield RecordToCopy(info.key, info.key, info.size)
        return
    sizes = {info.key: info.size for info in source.list(prefix)}
    there = {info.key for info in target.list(prefix)}
    with ThreadPoolExecutor(_READERS, thread_name_prefix="name-records") as pool:
        found_digests = pool.map(lambda one: _digests(source, generation[0], one.key), records)
        for digest in itertools.chain.from_iterable(found_digests):
            key = name_layout.name_map_key(*generation, content_name(target, digest))
            found = name_layout.name_map_key(*generation, content_name(source, digest))
            if key not in there:
                there.add(key)
                yield RecordToCopy(found, key, sizes.get(found, 0))


class MapFinder:
    """Finds a map of ``target`` in ``source``, for one that is damaged or missing."""

    def __init__(self, source: Store, target: Store, server: str) -> None:
        self._source = source
        self._target = target
        self._server = server
        self._found: dict[str, str] = {}

    def source_key(self, key: str) -> str:
        """What the source calls the map; any other object has one key everywhere.

        Raises ObjectMissingError where no record in either tells what the map must be; StoreError.
        """
        number = name_layout.generation_of_name_map(self._server, key)
        if number is None or names_alike(self._source, self._target):
            return key
        if key not in self._found:
            self._look()
        if key not in self._found:
            raise ObjectMissingError(f"no record of names that can be read refers to {key}")
        return self._found[key]

    def _look(self) -> None:
        for store in (self._target, self._source):
            for number in generation_numbers(store, self._server):
                for record in store.list(name_layout.names_prefix(self._server, number)):
                    for digest in _digests(store, self._server, record.key):
                        self._found[self._key(self._target, number, digest)] = self._key(
                            self._source, number, digest
                        )

    def _key(self, store: Store, number: int, digest: str) -> str:
        return name_layout.name_map_key(self._server, number, content_name(store, digest))


def _digests(store: Store, server: str, key: str) -> tuple[str, ...]:
    try:
        return referred_digests(server, key, store.read(key))
    except (CorruptObjectError, ObjectMissingError):
        return ()
