"""Tails beside whole segments: which of them count, and reading them while they are replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgrecall.model.lsn import Lsn
from pgrecall.model.timelines import TimelineHistory, TimelineSwitch
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.repository.wal_knowledge import KnowledgeReader, path_with_tails
from pgrecall.restore.replay import replay_path
from tests.support.tail_scene import MIB, TailScene, name_of

SWITCH = Lsn(4 * MIB + 500_000)
CHILD = TimelineHistory(2, (TimelineSwitch(1, SWITCH),))


@pytest.fixture
def scene(tmp_path: Path) -> TailScene:
    return TailScene(tmp_path)


def searched(archive: WalArchive, history: TimelineHistory) -> list[tuple[str, bool]]:
    """Names of the path, and which are tails; it is what a restore would replay."""
    segments, tails = path_with_tails(archive, history)
    replay = replay_path(archive, history, Lsn(3 * MIB))
    assert [name for name, _ in segments] == replay.names
    assert segments[-1][1] == replay.end
    assert tails <= {replay.tail}
    return [(name, name in tails) for name, _ in segments]


def test_a_tail_goes_on_where_whole_segments_end(scene: TailScene) -> None:
    scene.whole(1, 3)
    scene.tail(1, 4, 700_000)
    assert searched(scene.archive(), TimelineHistory(1)) == [
        (name_of(1, 3), False),
        (name_of(1, 4), True),
    ]
    scene.whole(1, 4)
    assert searched(scene.archive(), TimelineHistory(1))[1] == (name_of(1, 4), False)


def test_a_childs_tail_goes_before_its_parents_segment_if_it_is_longer(scene: TailScene) -> None:
    scene.whole(1, 3)
    scene.whole(1, 4)
    scene.tail(2, 4, 400_000)
    assert searched(scene.archive(), CHILD)[1] == (name_of(1, 4), False)
    scene.tail(2, 4, 900_000)
    assert searched(scene.archive(), CHILD)[1] == (name_of(2, 4), True)
    scene.whole(2, 4)
    assert searched(scene.archive(), CHILD)[1] == (name_of(2, 4), False)


def test_a_parents_tail_counts_up_to_where_it_was_left(scene: TailScene) -> None:
    scene.whole(1, 3)
    scene.tail(1, 4, 900_000)
    scene.tail(1, 5, 900_000)
    assert searched(scene.archive(), CHILD) == [(name_of(1, 3), False), (name_of(1, 4), True)]
    assert path_with_tails(scene.archive(), CHILD)[0][1][1] == SWITCH
    scene.whole(2, 4)
    assert searched(scene.archive(), CHILD)[1] == (name_of(2, 4), False)


def test_what_follows_a_tail_in_the_middle_follows_a_gap(scene: TailScene) -> None:
    scene.whole(1, 3)
    scene.tail(1, 4, 700_000)
    scene.whole(1, 5)
    archive = scene.archive()
    segments, tails = path_with_tails(archive, TimelineHistory(1))
    assert tails == {name_of(1, 4)}
    known = list(KnowledgeReader(archive).along(segments))
    assert [one.follows_gap for one in known] == [False, False, True]


def test_a_tail_that_is_replaced_while_it_is_read(scene: TailScene) -> None:
    scene.tail(1, 4, 300_000)
    archive, name = scene.archive(), name_of(1, 4)
    first = archive.tail_end(name)
    assert first is not None
    scene.tail(1, 4, 700_000)
    assert archive.index(name).end_lsn > first
    content = scene.content(1, 4)
    assert archive.read(name)[:650_000] == content[:650_000]
    scene.whole(1, 4)
    scene.landing.drop_tails(name)
    assert archive.read(name) == content
    assert archive.index(name).end_lsn > 5 * MIB - 70_000
