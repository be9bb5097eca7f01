"""The recoverable ranges of a real archive, held to what restore grants and refuses."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from pgrecall.app.opened import main_repository
from pgrecall.app.recoverable import RecoverableSurvey, run_recoverable
from pgrecall.app.recoverable_result import ReachableRange, RecoverableResult, TimelinePath
from pgrecall.app.requests import RecoverableRequest
from pgrecall.errors import BackupNotFoundError, StoreError, TargetUnreachableError
from pgrecall.model.lsn import Lsn
from pgrecall.model.targets import RecoveryTarget, ToLsn, ToName, ToTime, ToXid
from pgrecall.model.wal_files import WalFile
from pgrecall.repository import layout
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.gaps import DROPPED, Gap, write_gap
from pgrecall.restore.choice import Chooser
from pgrecall.store.opening import open_store
from pgrecall.system.clock import SystemClock
from tests.fault.test_receive_zero_loss import receiver, streaming_product
from tests.support.postgresql import Installation, ServerFactory, Templates
from tests.support.product import SERVER, Product

MIB = 1 << 20


class History:
    """A server with two backups, a gap between them, and a second timeline."""

    def __init__(self, product: Product) -> None:
        self.product = product
        self.server = product.server
        self.server.sql("CREATE TABLE rows (number int, at timestamptz DEFAULT clock_timestamp())")
        self.xids: list[int] = []
        self.write(5)
        self.first = product.backup()
        self.write(10)
        self.server.sql("SELECT pg_create_restore_point('early')")
        product.switch()
        self.write(5)
        self.lost = product.switch()
        self.write(5)
        product.switch()
        self.write(5)
        self.second = product.backup()
        self.write(10)
        product.switch()
        self.write(5)
        product.switch()
        self.promote()
        self.write(10)
        self.server.sql("SELECT pg_create_restore_point('late')")
        self.write(3)
        product.switch()
        self.object(self.lost).unlink()

    def write(self, count: int) -> None:
        for _ in range(count):
            with self.server.connect() as connection, connection.transaction():
                connection.execute("INSERT INTO rows VALUES (1)")
                ((xid,),) = connection.execute("SELECT pg_current_xact_id()::text").fetchall()
            self.xids.append(int(xid))

    def promote(self) -> None:
        """The server goes on, as after a failover, on the next timeline."""
        self.server.stop()
        (self.server.pgdata / "recovery.signal").touch()
        self.server.configure(restore_command="exit 1")
        self.server.start()
        self.server.wait_until(
            lambda: not self.server.value("SELECT pg_is_in_recovery()"), "it is promoted"
        )

    def object(self, name: str) -> Path:
        return self.product.path_of(layout.wal_key(SERVER, 1, WalFile(name)))

    def granted(self, target: RecoveryTarget, timeline: int | None = None) -> bool:
        """What restore says, with the archive read anew and every backup looked at."""
        store = open_store(self.product.repository, {})
        backups = Catalog(store, SERVER).complete()
        chooser = Chooser(self.product.archive(), backups, now=SystemClock().now())
        try:
            chooser.choose(target, timeline=timeline)
        except (TargetUnreachableError, BackupNotFoundError):
            return False
        return True

    def survey(self) -> RecoverableSurvey:
        return RecoverableSurvey(main_repository(self.product.context()), SERVER)

    def result(self) -> RecoverableResult:
        return run_recoverable(self.product.context(), RecoverableRequest())


@pytest.fixture(scope="module")
def history(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[History]:
    directory = tmp_path_factory.mktemp("ranges")
    factory = ServerFactory(pg_templates, installations[18], directory)
    product: Product | None = None
    try:
        product = Product.start(factory, directory, segment_mib=1, autovacuum="off")
        yield History(product)
    finally:
        if product is not None:
            product.close()
        factory.destroy()


def path_of(result: RecoverableResult, timeline: int) -> TimelinePath:
    (generation,) = result.generations
    (path,) = (one for one in generation.paths if one.timeline == timeline)
    return path


def holds(found: ReachableRange, at: datetime, now: datetime) -> bool:
    if found.from_at is None or found.to_at is None or at < found.from_at:
        return False
    return at <= found.to_at or (found.is_open and at <= now)


def test_ranges_gaps_and_the_newest_moment(history: History) -> None:
    result = history.result()
    path = path_of(result, 2)
    assert path.is_default
    assert [len(found.backups) for found in path.ranges] == [1, 1]
    closed, opened = path.ranges
    assert (closed.is_open, opened.is_open) == (False, True)
    assert closed.backups[0].backup_id == history.first.backup_id
    assert closed.from_lsn == history.first.stop_lsn
    (gap,) = path.gaps
    assert (gap.first_missing, gap.last_missing, gap.segments) == (history.lost, history.lost, 1)
    assert (gap.gap_bytes, gap.cause) == (MIB, "missing")
    assert Lsn.parse(closed.end_lsn) <= Lsn.parse(gap.from_lsn) < Lsn.parse(gap.to_lsn)
    assert closed.to_at is not None
    assert opened.from_at is not None
    assert gap.after_at is not None
    assert gap.before_at is not None
    assert closed.to_at < gap.after_at < gap.before_at < opened.from_at
    newest = history.server.value("SELECT max(at) FROM rows")
    assert result.newest_at is not None
    assert timedelta(0) <= result.newest_at - newest < timedelta(seconds=5)
    assert result.newest_timeline == 2
    assert [span.timeline for span in opened.segments] == [1, 2]
    old = path_of(result, 1)
    assert not old.is_default
    assert old.ranges[0] == msgspec.structs.replace(closed, timeline=1)


@pytest.mark.parametrize("timeline", [None, 1, 2])
def test_restore_grants_what_is_claimed_and_nothing_else(
    history: History, timeline: int | None
) -> None:
    result = history.result()
    path = path_of(result, timeline or 2)
    survey = history.survey()
    now = SystemClock().now()
    low = history.first.started_at - timedelta(seconds=1)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    moments = [low + (now - low) * chance.random() for _ in range(150)]
    bounds = [at for one in path.ranges for at in (one.from_at, one.to_at) if at is not None]
    moments += [at + timedelta(microseconds=step) for at in bounds for step in (-1, 0, 1)]
    for at in moments:
        target = ToTime(at, chance.random() < 0.5)
        said = survey.answer(target, timeline=timeline, now=now)
        assert said.is_reachable == history.granted(target, timeline), (at, said)
        if any(holds(found, at, now) for found in path.ranges):
            assert said.is_reachable, (at, said)
        elif said.is_reachable and target.inclusive:
            # Only while a backup ended: the exact first moment is not claimed.
            assert any(
                backup.started_at <= at < backup.stopped_at
                for backup in (history.first, history.second)
            ), (at, said)
    assert survey.answer(ToTime(bounds[0]), timeline=timeline, now=now).is_reachable
    last = path.ranges[0].to_at
    assert last is not None
    behind = ToTime(last + timedelta(microseconds=1))
    assert not survey.answer(behind, timeline=timeline, now=now).is_reachable


@pytest.mark.parametrize("timeline", [None, 1])
def test_every_position(history: History, timeline: int | None) -> None:
    path = path_of(history.result(), timeline or 2)
    survey, now = history.survey(), SystemClock().now()
    chance = random.Random(7)
    end = Lsn.parse(path.ranges[-1].end_lsn) + 2 * MIB
    positions = [chance.randrange(Lsn.parse(history.first.start_lsn), end) for _ in range(100)]
    for found in path.ranges:
        positions += [Lsn.parse(found.from_lsn), Lsn.parse(found.to_lsn)]
        positions += [position + step for position in positions[-2:] for step in (-1, 1)]
    for position in positions:
        target = ToLsn(Lsn(position), chance.random() < 0.5)
        said = survey.answer(target, timeline=timeline, now=now)
        assert said.is_reachable == history.granted(target, timeline), (target, said)
        inside = [
            one
            for one in path.ranges
            if Lsn.parse(one.from_lsn) <= position <= Lsn.parse(one.to_lsn)
        ]
        if inside:
            assert said.is_reachable, (target, said)
        elif said.is_reachable:  # behind the last record of an archive without a gap behind
            assert position > Lsn.parse(path.ranges[-1].to_lsn), (target, said)


def test_postgresql_recovers_to_every_bound(history: History, tmp_path: Path) -> None:
    """What is claimed is not only planned: the server opens there."""
    closed, opened = path_of(history.result(), 2).ranges
    assert closed.from_at is not None
    assert closed.to_at is not None
    assert opened.to_at is not None
    counts = []
    for number, target in enumerate(
        (
            ToTime(closed.from_at),
            ToTime(closed.to_at),
            ToLsn(Lsn.parse(closed.to_lsn)),
            ToTime(opened.to_at),
            ToLsn(Lsn.parse(opened.to_lsn)),
        )
    ):
        copy = tmp_path / f"copy{number}"
        result = history.product.restore(copy, target, start=True)
        assert result.started is not None
        assert result.started.state == "open"
        counts.append(history.product.connected(copy).value("SELECT count(*) FROM rows"))
        history.product.end(copy)
    assert counts == [5, 15, 15, 58, 58]


def test_transactions_and_names(history: History) -> None:
    survey, now = history.survey(), SystemClock().now()
    answers = {}
    for xid in [*history.xids, max(history.xids) + 100]:
        said = survey.answer(ToXid(xid), timeline=None, now=now)
        answers[xid] = said.is_reachable
        assert said.is_reachable == history.granted(ToXid(xid)), (xid, said)
    assert set(answers.values()) == {True, False}
    for name, expected in (("early", True), ("late", True), ("never", False)):
        said = survey.answer(ToName(name), timeline=None, now=now)
        assert said.is_reachable is expected is history.granted(ToName(name)), (name, said)
        if expected:
            assert f"--to-name {name}" in said.restore_command
    early = survey.answer(ToName("early"), timeline=None, now=now)
    assert early.backup_id == history.first.backup_id
    assert early.segment_names[-1] < history.lost
    assert early.wal_bytes == early.segments * MIB
    assert 0 < early.stored_bytes < early.wal_bytes


def test_damaged_packs_make_it_no(history: History) -> None:
    moment = path_of(history.result(), 2).ranges[0].to_at
    assert moment is not None
    pack = history.product.path_of(layout.pack_key(SERVER, history.first.backup_id, 0))
    aside = pack.rename(pack.with_suffix(".aside"))
    try:
        said = history.survey().answer(ToTime(moment), timeline=None, now=SystemClock().now())
        assert not said.is_reachable
        assert "missing" in said.reason
    finally:
        aside.rename(pack)


def test_a_lost_history_file_is_named(history: History) -> None:
    key = layout.wal_key(SERVER, 1, WalFile("00000002.history"))
    lost = history.product.path_of(key)
    aside = lost.rename(history.product.directory / "aside")
    try:
        result = history.result()
        assert [path.timeline for path in result.generations[0].paths] == [1]
        assert "history-missing" in {finding.code for finding in result.findings}
    finally:
        aside.rename(lost)


def test_a_repository_that_cannot_be_reached_is_no_empty_one(history: History) -> None:
    place = Path(history.product.repository.path)
    aside = place.rename(place.with_name("away"))
    try:
        with pytest.raises(StoreError):
            history.result()
    finally:
        aside.rename(place)


def test_an_empty_archive(pg_factory: ServerFactory, tmp_path: Path) -> None:
    product = Product.start(pg_factory, tmp_path)
    result = run_recoverable(product.context(), RecoverableRequest())
    assert result.newest_at is None
    assert {finding.code for finding in result.findings} == {"backup-none"}
    asked = RecoverableRequest(target=ToTime(SystemClock().now()))
    answer = run_recoverable(product.context(), asked).answer
    assert answer is not None
    assert not answer.is_reachable
    assert "no complete backup" in answer.reason


def test_an_idle_server_reaches_any_moment_behind_its_backup(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    product = Product.start(pg_factory, tmp_path)
    backup = product.backup()
    result = run_recoverable(product.context(), RecoverableRequest())
    (found,) = path_of(result, 1).ranges
    assert found.is_open
    assert (found.from_at, found.to_at) == (backup.stopped_at, backup.stopped_at)
    asked = RecoverableRequest(target=ToTime(SystemClock().now()))
    answer = run_recoverable(product.context(), asked).answer
    assert answer is not None
    assert answer.is_reachable
    assert answer.backup_id == backup.backup_id


def test_a_receivers_tail_and_recorded_gaps_count(
    pg_factory: ServerFactory, tmp_path: Path
) -> None:
    product = streaming_product(
        pg_factory, tmp_path, "[receive]\ntail_seconds = 0.2\n", segment_mib=1, autovacuum="off"
    )
    server = product.server
    with receiver(product):
        server.wait_until(
            lambda: server.value("SELECT count(*) FROM pg_stat_replication"), "streaming"
        )
        product.backup()
        server.sql("CREATE TABLE rows (at timestamptz DEFAULT clock_timestamp())")
        lost = product.switch()
        product.backup()
        for _ in range(5):
            server.sql("INSERT INTO rows DEFAULT VALUES")
        end = Lsn.parse(server.value("SELECT pg_current_wal_flush_lsn()::text"))
        name = server.value("SELECT pg_walfile_name(pg_current_wal_flush_lsn())")
        server.wait_until(lambda: (product.archive().tail_end(name) or 0) >= end, "it is stored")
    store = open_store(product.repository, {})
    product.path_of(layout.wal_key(SERVER, 1, WalFile(lost))).unlink()
    begin = WalFile(lost).start(MIB)
    now = SystemClock().now()
    write_gap(
        store,
        SERVER,
        1,
        Gap(1, begin, Lsn(begin + MIB), DROPPED, "pg_wal was nearly full", now),
    )
    result = run_recoverable(product.context(), RecoverableRequest())
    path = path_of(result, 1)
    (gap,) = path.gaps
    assert (gap.cause, gap.first_missing) == ("dropped", lost)
    assert "nearly full" in gap.explanation
    found = path.ranges[-1]
    assert (found.tail, found.is_open) == (name, True)
    newest = server.value("SELECT max(at) FROM rows")
    assert result.newest_at is not None
    assert timedelta(0) <= result.newest_at - newest < timedelta(seconds=5)
    assert Lsn.parse(result.newest_lsn) >= end
    survey = RecoverableSurvey(main_repository(product.context()), SERVER)
    chooser = Chooser(product.archive(), Catalog(store, SERVER).complete(), now=now)
    for target in (ToTime(newest), ToLsn(end), ToLsn(Lsn(end + MIB)), ToTime(gap_middle(path))):
        said = survey.answer(target, timeline=None, now=now)
        try:
            chooser.choose(target)
            is_granted = True
        except TargetUnreachableError:
            is_granted = False
        assert said.is_reachable == is_granted, (target, said)
    product.close()


def gap_middle(path: TimelinePath) -> datetime:
    """A moment at which the lost segment was written."""
    closed = path.ranges[0]
    return (closed.to_at or closed.consistent_at) + timedelta(microseconds=1)
