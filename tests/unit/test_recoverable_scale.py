"""Ten thousand backups over two thousand segments: nothing is walked for each of them."""

from __future__ import annotations

import time
from collections import Counter
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest

from pgrecall.app.opened import OpenedRepository
from pgrecall.app.recoverable import RecoverableSurvey
from pgrecall.app.recoverable_result import RecoverableResult
from pgrecall.codec.compression import make_frame_encoder
from pgrecall.model.ids import BACKUP, new_id
from pgrecall.model.lsn import Lsn
from pgrecall.model.targets import RecoveryTarget, ToLsn, ToName, ToTime, ToXid
from pgrecall.model.wal_files import SEGMENT, WalFile, segment_name
from pgrecall.model.wal_index import RestorePoint, Times, WalIndex, microseconds_of
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.documents import sealed
from pgrecall.repository.identity import System, add_generation, create_repository
from pgrecall.repository.wal_objects import WalContent, WalHeader, WalObjectWriter
from pgrecall.store.faulty import FaultyStore
from pgrecall.store.memory import MemoryStore
from tests.support.wal_scene import NOW, SYSTEM
from tests.unit.test_catalog import completion

SIZE = 16 << 20
SEGMENTS = 2000
BACKUPS = 10_000
LOST = 1200
STEP = timedelta(minutes=1)
ENCODE = make_frame_encoder("none", 1)


def moment(number: float) -> datetime:
    """When segment ``number`` begins to be written."""
    return NOW - timedelta(days=30) + STEP * number


def put_segment(store: MemoryStore, number: int) -> None:
    name = segment_name(1, number * SIZE, SIZE)
    index = WalIndex(number * SIZE, SIZE, 1)
    begin, end = microseconds_of(moment(number)), microseconds_of(moment(number + 0.9))
    index.end_lsn = index.segment_end
    index.last_record_lsn = Lsn(index.segment_end - 100)
    index.first_record_lsn = Lsn(index.start_lsn + 40)
    if number not in (1, LOST + 1):
        # Where the first backup of a range ends, commits would be read from the WAL itself.
        index.commit_times = index.end_times = Times(begin, end, begin, end)
        index.commit_count = index.record_count = 100
        index.least_xid, index.greatest_xid = 1000 + number * 100, 1099 + number * 100
    if number % 100 == 50:
        at = index.start_lsn + (4 << 20)
        index.restore_points = (RestorePoint(f"point {number}", at, at + 100, end),)
    header = WalHeader(name, SEGMENT)
    header.system_identifier, header.segment_bytes = SYSTEM, SIZE
    header.pushed_at = NOW
    key = layout.wal_key("main", 1, WalFile(name))
    WalObjectWriter(header, WalContent(b"x", index.to_bytes(), bytes(32)), ENCODE).write(store, key)


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    store = MemoryStore()
    create_repository(store, NOW)
    add_generation(store, "main", System(SYSTEM, 18, SIZE, 8192), NOW)
    for number in range(1, SEGMENTS):
        if number != LOST:
            put_segment(store, number)
    for number in range(BACKUPS):
        place = 1.2 + number * (SEGMENTS - 2) / BACKUPS
        backup_id = new_id(BACKUP, moment(place))
        record = completion(
            backup_id,
            generation=1,
            timeline=1,
            segment_bytes=SIZE,
            start_lsn=str(Lsn(int(place * SIZE) // 8 * 8)),
            stop_lsn=str(Lsn(int(place * SIZE) // 8 * 8 + 8000)),
            started_at=moment(place),
            stopped_at=moment(place) + timedelta(seconds=1),
            has_wal=False,
        )
        store.put(layout.complete_key("main", backup_id), [sealed(record)])
    return store


def survey_of(store: FaultyStore) -> RecoverableSurvey:
    opened: Any = SimpleNamespace(
        store=store,
        settings=SimpleNamespace(name="one"),
        catalog=lambda server: Catalog(store, server),
    )
    return RecoverableSurvey(cast(OpenedRepository, opened), "main")


class Surveyed(NamedTuple):
    """One look at it all, and what that took."""

    survey: RecoverableSurvey
    result: RecoverableResult
    reads: int
    cpu_seconds: float


@pytest.fixture(scope="module")
def surveyed(store: MemoryStore) -> Surveyed:
    counting = FaultyStore(store)
    began = time.process_time()
    survey = survey_of(counting)
    result = survey.result(NOW)
    keys = [key for method, key in counting.calls if method == "read"]
    twice = [key for key, count in Counter(keys).items() if count > 1]
    # The segment in which the first backup of a range is consistent is read for its index, and
    # for its commits.
    assert len(twice) <= 2, twice
    reads = len(keys)
    return Surveyed(survey, result, reads, time.process_time() - began)


def test_ranges_and_answers(surveyed: Surveyed) -> None:
    began = time.process_time() - surveyed.cpu_seconds
    survey, result = surveyed.survey, surveyed.result
    (generation,) = result.generations
    (path,) = generation.paths
    before, behind = path.ranges
    assert len(before.backups) + len(behind.backups) + len(path.unusable) == BACKUPS
    assert len(path.unusable) <= 8  # those that began where the lost segment was
    (gap,) = path.gaps
    assert gap.first_missing == segment_name(1, LOST * SIZE, SIZE)
    assert result.newest_lsn == str(Lsn(SEGMENTS * SIZE))
    assert surveyed.reads < BACKUPS + SEGMENTS + 50

    in_gap: list[RecoveryTarget] = [
        ToTime(moment(LOST + 0.5)),
        ToXid(1000 + LOST * 100 + 50),
        ToLsn(Lsn(LOST * SIZE + 500)),
        ToName("nowhere"),
        ToTime(moment(0)),
    ]
    for target in in_gap:
        answer = survey.answer(target, timeline=None, now=NOW)
        assert not answer.is_reachable, target
        if target in in_gap[:1]:
            assert gap.first_missing in answer.reason
    # About ten seconds on a slow machine; a walk for each backup takes hours.
    assert time.process_time() - began < 120


def test_the_newest_fitting_backup_is_taken(surveyed: Surveyed) -> None:
    survey = surveyed.survey
    for target, number in ((ToLsn(Lsn(700 * SIZE + (8 << 20))), 700), (ToName("point 1350"), 1350)):
        # There are no packs: the answer is no for that, and the choice is made all the same.
        answer = survey.answer(target, timeline=None, now=NOW)
        assert "is damaged" in answer.reason
        assert answer.segments == 1, answer
        assert answer.segment_names == (segment_name(1, number * SIZE, SIZE),)
