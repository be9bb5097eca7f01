"""Tiny files never fill a pack by their bytes: their number ends it, or its footer has no bound."""

from pgrecall.repository import layout, pack_sink
from pgrecall.repository.pack_sink import PackFactory, PackSink
from pgrecall.repository.packs import PackHeader, PackReader
from pgrecall.store.memory import MemoryStore

_BACKUP = "b-20261122T210000Z-aaaaaa"


def test_packs_end_after_so_many_slices() -> None:
    store = MemoryStore(pack_bytes=1 << 40)
    header = PackHeader(repository_id="0" * 32, server="main", backup_id=_BACKUP, number=0)
    factory = PackFactory(store, header, codec="zstd", level=1, committers=1)
    sink = PackSink(factory)
    files = pack_sink._PACK_SLICES * 2 + 1
    a_frame = 1000
    for first in range(0, files, a_frame):
        names = [b"base/1/%d" % number for number in range(first, min(files, first + a_frame))]
        sink.add(bytes(len(names)), [(name, 0, 1) for name in names])
    sink.finish_pack()
    entries = factory.finish()
    factory.close()
    assert len(entries) == 2
    found = 0
    for entry in entries:
        key = layout.pack_key("main", _BACKUP, entry.number)
        reader = PackReader(key, store.reader(key), entry.footer_digest)
        slices = sum(len(frame.slices) for frame in reader.frames)
        assert slices < pack_sink._PACK_SLICES + a_frame
        found += slices
        reader.close()
    assert found == files
