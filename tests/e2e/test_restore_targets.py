"""Every kind of recovery target, held to an oracle: the commits up to it, no more, no less."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pgrecall.errors import TargetUnreachableError
from pgrecall.model.lsn import Lsn
from pgrecall.model.manifest import Completion
from pgrecall.model.targets import (
    Immediate,
    Latest,
    RecoveryTarget,
    ToLsn,
    ToName,
    ToTime,
    ToXid,
    parse_time,
)
from tests.support.oracle import Acknowledged, Oracle, in_zone
from tests.support.postgresql import Installation, ServerFactory, Templates, run_program
from tests.support.product import Product

NASTY_NAME = 'vor der "Änderung" o\'clock \\ 100%'


class Story:
    """One server, one backup, and what was written before and after it, all archived."""

    def __init__(self, product: Product, oracle: Oracle) -> None:
        self.product = product
        self.oracle = oracle
        server = product.server
        oracle.write(3)
        self.backup: Completion = product.backup()
        self.at_backup = oracle.acknowledged[-1]
        oracle.write(10)
        self.subtransaction = oracle.write_in_subtransaction()
        oracle.write(4)
        self.aborted = oracle.abort()
        self.before_abort = oracle.acknowledged[-1]
        oracle.write(2)
        server.sql("SELECT pg_create_restore_point(%s)", NASTY_NAME)
        self.at_name = oracle.acknowledged[-1]
        # The next commits lie in other segments, so that indexes are crossed.
        server.sql("SELECT pg_logical_emit_message(true, 'test', repeat('x', 3000000))")
        oracle.write(5)
        self.middle = oracle.acknowledged[-3]
        product.switch()
        oracle.write(3)
        product.switch()
        self.last = oracle.acknowledged[-1]

    def commit_lsn(self, commit: Acknowledged) -> Lsn:
        """Where the commit record begins, as PostgreSQL's own tool tells."""
        archive = self.product.archive()
        directory = self.product.directory / "waldump"
        directory.mkdir(exist_ok=True)
        for segment in archive.segments(1):
            (directory / segment.name).write_bytes(archive.read(segment.name))
        names = sorted(path.name for path in directory.iterdir())
        shown = run_program(
            [
                self.product.server.installation.program("pg_waldump"),
                *("-p", directory, "-r", "Transaction", "-x", str(commit.xid)),
                *(names[0], names[-1]),
            ],
            check=False,
        )
        (found,) = re.findall(r"lsn: ([0-9A-F]+/[0-9A-F]+), prev [^,]+, desc: COMMIT", shown)
        return Lsn.parse(found)


@pytest.fixture(scope="module")
def story(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Story]:
    directory = tmp_path_factory.mktemp("targets")
    factory = ServerFactory(pg_templates, installations[18], directory)
    try:
        product = Product.start(factory, directory, track_commit_timestamp="on")
        with Oracle(product.server) as oracle:
            yield Story(product, oracle)
    finally:
        factory.destroy()


@pytest.fixture
def restored(story: Story, tmp_path: Path) -> Iterator[Callable[..., list[int]]]:
    """Restore to a target, start, and say which rows are there."""
    copies: list[Path] = []

    def restore(target: RecoveryTarget, **wishes: Any) -> list[int]:
        copies.append(tmp_path / f"copy{len(copies)}")
        result = story.product.restore(copies[-1], target, start=True, **wishes)
        assert result.started is not None
        assert result.started.state == "open"
        rows = story.oracle.found_on(story.product.connected(copies[-1]))
        story.product.end(copies[-1])
        return rows

    try:
        yield restore
    finally:
        for copy in copies:
            story.product.end(copy)


Restore = Callable[..., list[int]]


def test_latest(story: Story, restored: Restore) -> None:
    assert restored(Latest()) == story.oracle.through(story.last)


def test_immediate(story: Story, restored: Restore) -> None:
    assert restored(Immediate()) == story.oracle.through(story.at_backup)


@pytest.mark.parametrize("zone", [{"hours": 2}, {"hours": 0}, {"hours": -5, "minutes": -30}])
def test_time(story: Story, restored: Restore, zone: dict[str, int]) -> None:
    """A commit stamped exactly with the target's time belongs to it, in every zone."""
    target = ToTime(parse_time(in_zone(story.middle.at, **zone)))
    assert restored(target) == story.oracle.through(story.middle)


def test_time_exclusive(story: Story, restored: Restore) -> None:
    assert restored(ToTime(story.middle.at, False)) == story.oracle.before(story.middle)


def test_time_between_two_commits(story: Story, restored: Restore) -> None:
    target = ToTime(story.middle.at - timedelta(microseconds=1))
    assert restored(target) == story.oracle.before(story.middle)


def test_time_of_the_last_commit(story: Story, restored: Restore) -> None:
    """Nothing is behind it: PostgreSQL would call that a failure (fact 23)."""
    assert restored(ToTime(story.last.at)) == story.oracle.through(story.last)
    assert restored(ToTime(story.last.at, False)) == story.oracle.before(story.last)


@pytest.mark.parametrize("inclusive", [True, False])
def test_lsn(story: Story, restored: Restore, inclusive: bool) -> None:
    at = story.commit_lsn(story.middle)
    expected = story.oracle.through if inclusive else story.oracle.before
    assert restored(ToLsn(at, inclusive)) == expected(story.middle)


def test_lsn_after_an_acknowledgement(story: Story, restored: Restore) -> None:
    """Just before the position that was read after a commit: that commit, and none behind it."""
    assert restored(ToLsn(story.middle.end, False)) == story.oracle.through(story.middle)


@pytest.mark.parametrize("inclusive", [True, False])
def test_xid(story: Story, restored: Restore, inclusive: bool) -> None:
    expected = story.oracle.through if inclusive else story.oracle.before
    assert restored(ToXid(story.middle.xid, inclusive)) == expected(story.middle)


def test_xid_of_an_aborted_transaction(story: Story, restored: Restore) -> None:
    assert restored(ToXid(story.aborted)) == story.oracle.through(story.before_abort)


def test_xid_of_a_subtransaction_is_refused(story: Story, tmp_path: Path) -> None:
    with pytest.raises(TargetUnreachableError, match="transaction"):
        story.product.restore(tmp_path / "copy", ToXid(story.subtransaction))
    assert not (tmp_path / "copy").exists()


def test_name_with_quotes_and_unicode(story: Story, restored: Restore) -> None:
    assert restored(ToName(NASTY_NAME)) == story.oracle.through(story.at_name)


def test_the_plan_says_where_it_stops(story: Story, tmp_path: Path) -> None:
    """What the plan promises is what PostgreSQL's own log says afterwards."""
    result = story.product.restore(tmp_path / "copy", ToXid(story.middle.xid), start=True)
    assert result.plan.stops_at == f"commit of transaction {story.middle.xid}"
    assert result.plan.stops_at_lsn == str(story.commit_lsn(story.middle))
    assert result.plan.stops_at_time == story.middle.at
    assert result.plan.backup_id == story.backup.backup_id
    assert result.started is not None
    assert f"commit of transaction {story.middle.xid}" in result.started.stopped
    assert result.started.last_commit_at == story.middle.at
    story.product.end(tmp_path / "copy")
