"""Ranges and answers over WAL whose clock jumps, held to what restore chooses: seeded rounds."""

from __future__ import annotations

import random
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pgrecall.app.opened import OpenedRepository
from pgrecall.app.recoverable import RecoverableSurvey
from pgrecall.app.recoverable_result import ReachableRange
from pgrecall.codec.compression import make_frame_encoder
from pgrecall.codec.wal_scan import scan_segment
from pgrecall.errors import BackupNotFoundError, TargetUnreachableError
from pgrecall.model.ids import BACKUP, new_id
from pgrecall.model.lsn import Lsn
from pgrecall.model.targets import RecoveryTarget, ToLsn, ToName, ToTime, ToXid
from pgrecall.model.wal_files import SEGMENT, WalFile, segment_name
from pgrecall.model.wal_index import datetime_of, microseconds_of
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.documents import sealed
from pgrecall.repository.identity import (
    System,
    add_generation,
    create_repository,
    open_repository,
    read_generation,
)
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.repository.wal_objects import WalContent, WalHeader, WalObjectWriter
from pgrecall.restore.choice import Chooser
from pgrecall.store.memory import MemoryStore
from tests.support.wal_builder import RM_HEAP, RM_XACT, RM_XLOG, WalBuilder, commit, restore_point
from tests.support.wal_scene import NOW, SYSTEM
from tests.unit.test_catalog import completion

MIB = 1 << 20
SEGMENTS = 7
ROUNDS = 12
# The clock went back while the only backup of a range was taken; a commit inside of the backup
# has exactly the time where the range begins.
KNOWN_SEEDS = (1430225006, 3248732299)
ENCODE = make_frame_encoder("none", 1)
SECOND = 1_000_000


class World:
    """An archive of random WAL with random backups and gaps; ``times`` of all commits."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.store = MemoryStore()
        create_repository(self.store, NOW)
        add_generation(self.store, "main", System(SYSTEM, 18, MIB, 8192), NOW)
        self.times: list[int] = []
        self.borders: list[tuple[int, int]] = []
        self.names: list[str] = []
        builder = self._write()
        raw_key = open_repository(self.store).raw_key()
        for number, content in enumerate(builder.segments()[:SEGMENTS]):
            if self.chance.random() < 0.15:
                continue
            start = builder.start + number * MIB
            name = segment_name(1, start, MIB)
            header = WalHeader(name, SEGMENT)
            header.system_identifier, header.segment_bytes = SYSTEM, MIB
            index = scan_segment(content, start).index.to_bytes()
            key = layout.wal_key("main", 1, WalFile(name))
            WalObjectWriter(header, WalContent(content, index, raw_key), ENCODE).write(
                self.store, key
            )
        for _ in range(self.chance.randrange(1, 5)):
            self._back_up()

    def _write(self) -> WalBuilder:
        builder = WalBuilder(start=3 * MIB, segment_bytes=MIB)
        clock = microseconds_of(NOW - timedelta(days=1))
        xid = 1000
        while builder.position < builder.start + SEGMENTS * MIB:
            clock += self.chance.randrange(SECOND)
            if self.chance.random() < 0.05:
                clock -= self.chance.randrange(60 * SECOND)
            self.borders.append((builder.position, clock))
            if self.chance.random() < 0.03:
                self.names.append(f"point {len(self.names) // 2}")  # each name twice
                point = restore_point(clock, self.names[-1].encode())
                builder.add(RM_XLOG, 0x70, point)
            builder.add(RM_HEAP, 0, bytes(self.chance.randrange(100, 120_000)), xid=xid)
            info, data = commit(clock, subtransactions=self.chance.randrange(0, 900))
            builder.add(RM_XACT, info, data, xid=xid)
            self.times.append(clock)
            xid += 1
        self.last_xid = xid
        return builder

    def _back_up(self) -> None:
        first = self.chance.randrange(len(self.borders) - 8)
        last = first + self.chance.randrange(1, 8)
        (start, began), (stop, ended) = self.borders[first], self.borders[last]
        record = completion(
            backup_id := new_id(BACKUP, datetime_of(began)),
            generation=1,
            timeline=1,
            segment_bytes=MIB,
            start_lsn=str(Lsn(start)),
            stop_lsn=str(Lsn(stop)),
            started_at=datetime_of(began),
            stopped_at=datetime_of(ended),
            has_wal=self.chance.random() < 0.2,
        )
        self.store.put(layout.complete_key("main", backup_id), [sealed(record)])

    def survey(self) -> RecoverableSurvey:
        opened: Any = SimpleNamespace(
            store=self.store,
            settings=SimpleNamespace(name="one"),
            catalog=lambda server: Catalog(self.store, server),
        )
        return RecoverableSurvey(cast(OpenedRepository, opened), "main")

    def granted(self, target: RecoveryTarget) -> bool:
        archive = WalArchive(self.store, "main", read_generation(self.store, "main", 1))
        chooser = Chooser(archive, Catalog(self.store, "main").complete(), now=NOW)
        try:
            chooser.choose(target, timeline=1)
        except (TargetUnreachableError, BackupNotFoundError):
            return False
        return True

    def targets(self) -> list[RecoveryTarget]:
        chance = self.chance
        low, high = min(self.times), max(self.times)
        moments = [chance.randrange(low - SECOND, high + 2 * SECOND) for _ in range(25)]
        moments += [time + chance.choice((-1, 0, 1)) for time in chance.sample(self.times, 15)]
        found: list[RecoveryTarget] = [
            ToTime(datetime_of(moment), chance.random() < 0.7) for moment in moments
        ]
        found += [
            ToLsn(Lsn(chance.randrange(3 * MIB, (3 + SEGMENTS + 1) * MIB)), chance.random() < 0.5)
            for _ in range(20)
        ]
        found += [ToXid(chance.randrange(990, self.last_xid + 10)) for _ in range(10)]
        return found + [ToName(name) for name in {*self.names, "never"}]


def claims(found: ReachableRange, target: RecoveryTarget) -> bool:
    if isinstance(target, ToTime):
        if found.from_at is None or found.to_at is None:
            return False
        return found.from_at <= target.at and (target.at <= found.to_at or found.is_open)
    if isinstance(target, ToLsn) and found.to_lsn:
        return Lsn.parse(found.from_lsn) <= target.lsn <= Lsn.parse(found.to_lsn)
    return False


def bounds(found: ReachableRange) -> list[RecoveryTarget]:
    times = [ToTime(at) for at in (found.from_at, found.to_at) if at is not None]
    lsns = [ToLsn(Lsn.parse(text)) for text in (found.from_lsn, found.to_lsn) if found.to_lsn]
    return [*times, *lsns]


@pytest.mark.parametrize("round_number", range(ROUNDS))
def test_no_range_claims_what_restore_refuses(
    monkeypatch: pytest.MonkeyPatch, round_number: int
) -> None:
    monkeypatch.setattr(RecoverableSurvey, "_damage", lambda *_: "")  # there are no packs here
    seed = [*KNOWN_SEEDS, random.randrange(1 << 32)][min(round_number, len(KNOWN_SEEDS))]
    print(f"seed {seed}")
    world = World(seed)
    survey = world.survey()
    ranges: list[ReachableRange] = []
    for path in survey.result(NOW).generations[0].paths:
        ranges += path.ranges
    targets = world.targets() + [target for found in ranges for target in bounds(found)]
    for target in targets:
        is_granted = world.granted(target)
        said = survey.answer(target, timeline=1, now=NOW)
        assert said.is_reachable == is_granted, (seed, target, said)
        if any(claims(found, target) for found in ranges):
            assert is_granted, (seed, target, said)
