"""Tails beside their whole segments go when these begin with their bytes, and else stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgrecall.errors import StoreError
from pgrecall.model.wal_files import WalFile
from pgrecall.repository import layout
from pgrecall.store.base import ObjectInfo
from pgrecall.store.local import LocalStore
from tests.support.tail_scene import TailScene, name_of


def test_only_tails_of_whole_segments_go(tmp_path: Path) -> None:
    scene = TailScene(tmp_path)
    for number, size in ((3, 300_000), (4, 700_000), (5, 900_000)):
        scene.tail(1, number, size)
    scene.tail(2, 4, 600_000)
    scene.whole(1, 3)
    scene.whole(2, 4)
    assert scene.landing.drop_covered_tails() == []
    assert (scene.tail_ends(1, 3), scene.tail_ends(2, 4)) == ([], [])
    # What timeline 1 had of the segment in which it was left is nowhere else.
    assert (scene.tail_ends(1, 4), scene.tail_ends(1, 5)) == ([700_000], [900_000])
    assert scene.archive().read(name_of(1, 3)) == scene.content(1, 3)


def test_every_length_that_was_left_goes(tmp_path: Path) -> None:
    scene = TailScene(tmp_path)
    scene.tail(1, 3, 300_000)
    kept = [(path, path.read_bytes()) for path in tails_below(tmp_path)]
    scene.tail(1, 3, 700_000)
    for path, content in kept:
        path.write_bytes(content)
    assert scene.tail_ends(1, 3) == [300_000, 700_000]
    scene.whole(1, 3)
    assert scene.landing.drop_covered_tails() == []
    assert scene.tail_ends(1, 3) == []


def test_a_tail_with_other_bytes_stays_and_is_named(tmp_path: Path) -> None:
    scene = TailScene(tmp_path)
    other = bytearray(scene.content(1, 3))
    other[600_000] ^= 1
    scene.tail(1, 3, 700_000, bytes(other))
    scene.whole(1, 3)
    for _ in range(2):
        (said,) = scene.landing.drop_covered_tails()
        assert name_of(1, 3) in said
        assert "other bytes" in said
        assert scene.tail_ends(1, 3) == [700_000]


@pytest.mark.parametrize("what", ["segment", "segment of another name", "header of the tail"])
def test_what_is_damaged_proves_nothing(tmp_path: Path, what: str) -> None:
    scene = TailScene(tmp_path)
    scene.tail(1, 3, 700_000)
    scene.tail(1, 4, 500_000)
    scene.whole(1, 3)
    scene.whole(1, 4)
    whole = scene.object_path(name_of(1, 3))
    (tail,) = (path for path in tails_below(tmp_path) if path.parent.name == name_of(1, 3))
    if what == "segment":
        flip(whole, whole.stat().st_size // 2)
    elif what == "segment of another name":
        whole.write_bytes(scene.object_path(name_of(1, 4)).read_bytes())
    else:
        flip(tail, 60)
    (said,) = scene.landing.drop_covered_tails()
    assert name_of(1, 3) in said
    assert "other bytes" not in said
    assert scene.tail_ends(1, 3) == [700_000]
    assert scene.tail_ends(1, 4) == []


def test_each_repository_for_itself(tmp_path: Path) -> None:
    scene = TailScene(tmp_path, roles=("required", "best-effort"))
    scene.tail(1, 3, 700_000)
    scene.whole(1, 3)
    scene.object_path(name_of(1, 3), "two").unlink()
    assert scene.landing.drop_covered_tails() == []
    assert (scene.tail_ends(1, 3), scene.tail_ends(1, 3, "two")) == ([], [700_000])


def test_unknown_is_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = TailScene(tmp_path)
    scene.tail(1, 3, 700_000)
    scene.whole(1, 3)

    whole = layout.wal_key("main", 1, WalFile(name_of(1, 3)))
    head = LocalStore.head

    def fails(store: LocalStore, key: str) -> ObjectInfo | None:
        if key == whole:
            raise StoreError("a fault was injected")
        return head(store, key)

    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "head", fails)
        with pytest.raises(StoreError, match="injected"):
            scene.landing.drop_covered_tails()
    assert scene.tail_ends(1, 3) == [700_000]


def tails_below(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob(f"one/**/{layout.TAILS}/*/*/*") if path.is_file())


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)
