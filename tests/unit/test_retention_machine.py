"""Backups, expiries, purges, holds and restores in any order: what is kept stays restorable."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pgrecall.errors import RetentionError, StoreError
from pgrecall.model.lsn import Lsn
from pgrecall.model.policies import Policy
from pgrecall.repository.retention_log import read_state
from pgrecall.store.faulty import Fault, FaultyStore
from tests.support.retention_scene import GRACE, SIZE, RetentionScene

POLICIES = st.builds(
    Policy,
    keep_last=st.integers(0, 2),
    keep_daily=st.integers(0, 2),
    keep_weekly=st.integers(0, 1),
    pitr_window_hours=st.sampled_from([0, 5, 30]),
).filter(lambda policy: not policy.keeps_everything)
LEASE = timedelta(seconds=900)


class Retention(RuleBasedStateMachine):
    """One repository in memory, and the restores that are under way."""

    def __init__(self) -> None:
        super().__init__()
        self.scene = RetentionScene()
        self.scene.backup()
        #: Objects that a restore needs, and until when its lease lasts.
        self.restores: list[tuple[set[str], object]] = []

    # --- what happens ------------------------------------------------------------------

    @rule(hours=st.integers(1, 20))
    def work(self, hours: int) -> None:
        self.scene.work(hours)

    @rule(picks=st.integers(0, 3))
    def backup(self, picks: int) -> None:
        """Full, or referring to what a listed one has or refers to itself."""
        refers_to: dict[str, list[int]] = {}
        base = self.scene.listed()[-1 - picks :][:1] if picks else []
        for backup_id in base:
            completion = self.scene.catalog.get(backup_id)
            for pack in self.scene.catalog.manifest(completion).packs():
                refers_to.setdefault(pack.owner or backup_id, []).append(pack.number)
        self.scene.backup(refers_to)

    @rule()
    def killed_backup(self) -> None:
        self.scene.backup(completes=False)

    @rule(policy=POLICIES)
    def expire(self, policy: Policy) -> None:
        promised = self.reachable(policy)
        newest = self.scene.listed()[-1]
        held = {hold.item_id for hold in read_state(self.scene.store, "main").holds}
        listed = set(self.scene.listed())
        self.scene.expire(policy)
        left = set(self.scene.listed())
        assert newest in left
        assert held & listed <= left
        assert promised <= self.reachable(policy)
        assert not self.scene.expire(policy).changes

    @precondition(lambda self: read_state(self.scene.store, "main").expired)
    @rule(data=st.data())
    def undo(self, data: st.DataObject) -> None:
        expired = sorted(read_state(self.scene.store, "main").expired)
        wanted = data.draw(st.sampled_from(expired))
        try:
            self.scene.undo(wanted)
        except RetentionError as error:
            assert "WAL that" in error.message
        else:
            assert wanted in self.scene.listed()

    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        self.scene.hold(data.draw(st.sampled_from(self.scene.listed())))

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.scene.release(data.draw(st.sampled_from(self.scene.listed())))

    @rule(data=st.data())
    def begin_restore(self, data: st.DataObject) -> None:
        backup_id = data.draw(st.sampled_from(self.scene.listed()))
        self.scene.lease("restore", backup_id)
        self.restores.append((self.needs(backup_id), self.scene.now + LEASE))

    @rule(waits=st.booleans(), call=st.none() | st.integers(1, 120))
    def purge(self, waits: bool, call: int | None) -> None:
        """Maybe after the grace; maybe it dies at its ``call``-th call of the store."""
        if waits:
            self.scene.wait(GRACE)
        listed, visible = self.scene.listed(), self.scene.visible_segments()
        if call is not None:
            self.scene.store = FaultyStore(self.scene.memory, [Fault("before", at=call)])
        try:
            self.scene.purge()
        except StoreError:
            assert call is not None
        finally:
            self.scene.store = self.scene.memory
        assert self.scene.listed() == listed
        assert self.scene.visible_segments() == visible

    # --- what holds ----------------------------------------------------------------------

    @invariant()
    def everything_listed_is_whole(self) -> None:
        assert self.scene.listed()
        self.scene.require_sealed()

    @invariant()
    def a_restore_keeps_what_it_reads(self) -> None:
        self.restores = [one for one in self.restores if one[1] >= self.scene.now]  # type: ignore[operator]
        for objects, _ in self.restores:
            assert objects <= self.scene.memory.objects.keys()

    # --- parts -----------------------------------------------------------------------------

    def needs(self, backup_id: str) -> set[str]:
        completion = self.scene.catalog.get(backup_id)
        prefix = "servers/main/backups/"
        found = {f"{prefix}{backup_id}/{name}" for name in self.scene.objects_of(backup_id)}
        for pack in self.scene.catalog.manifest(completion).packs():
            found.add(f"{prefix}{pack.owner or backup_id}/pack-{pack.number:04d}")
        return found

    def reachable(self, policy: Policy) -> set[int]:
        """Hours that the policy promises, and that can be reached."""
        backups = [self.scene.catalog.get(one) for one in self.scene.listed()]
        segments = self.scene.visible_segments()
        newest = backups[-1].stopped_at
        window = timedelta(hours=policy.pitr_window_hours)
        found: set[int] = set()
        for backup in backups:
            hour = Lsn.parse(backup.start_lsn) // SIZE
            while hour in segments:
                found.add(hour)
                hour += 1
        if not policy.pitr_window_hours:
            return set()
        stored = {
            int(key[-8:], 16): at
            for key, (_, at) in self.scene.memory.objects.items()
            if "/wal/" in key
        }
        return {hour for hour in found if stored[hour] >= newest - window}


Retention.TestCase.settings = settings(
    deadline=None,
    max_examples=12,
    stateful_step_count=20,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


TestRetention = Retention.TestCase
