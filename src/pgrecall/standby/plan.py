"""What a standby is to follow, and whether it can. Pure."""

from __future__ import annotations

import msgspec

from pgrecall.errors import SlotError
from pgrecall.further_errors import StandbyError
from pgrecall.model.timelines import TimelineHistory
from pgrecall.postgres.slots import LOST, PHYSICAL
from pgrecall.postgres.upstream import UpstreamFacts


class FollowPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Whom the standby follows: ``conninfo`` and ``slot`` become its settings."""

    where: str
    conninfo: str
    timeline: int
    slot: str = ""
    makes_slot: bool = False
    cascades: bool = False
    reasons: tuple[str, ...] = ()


def plan_follow(
    facts: UpstreamFacts, *, slot: str, system_identifier: int, major: int
) -> FollowPlan:
    """Raises StandbyError when the server cannot be followed, SlotError for its slot.

    ``system_identifier`` and ``major`` are those of the repository's data.
    """
    if facts.system_identifier != system_identifier:
        raise StandbyError(
            f"{facts.where} is another system ({facts.system_identifier}) than the one in the"
            f" repository ({system_identifier})",
            hint="is --primary, or --server, that of another server?",
        )
    if facts.version_num // 10000 != major:
        raise StandbyError(
            f"{facts.where} runs PostgreSQL {facts.version_num // 10000}, the repository has"
            f" {major}",
            hint="follow pg_upgrade with pgrecall server upgrade, and take a backup",
        )
    if facts.wal_level == "minimal":
        raise StandbyError(
            f"{facts.where} has wal_level = minimal: nobody can follow it",
            hint="set wal_level = replica there, which takes a restart",
        )
    reasons = []
    if facts.is_in_recovery:
        reasons.append("what --primary names is a standby itself: this one cascades from it")
    makes_slot = bool(slot) and facts.slot is None
    if makes_slot and facts.free_slots < 1:
        raise SlotError(
            f"{facts.where} has no replication slot to spare",
            hint="raise max_replication_slots there, or drop one: pgrecall wal slots",
        )
    _require_usable(facts)
    if makes_slot:
        reasons.append(f"the slot {slot} is made there; it keeps WAL from the first contact on")
    if not slot:
        reasons.append("without a slot: WAL that the primary has removed comes from the archive")
    return FollowPlan(
        where=facts.where,
        conninfo=facts.conninfo,
        timeline=facts.timeline,
        slot=slot,
        makes_slot=makes_slot,
        cascades=facts.is_in_recovery,
        reasons=tuple(reasons),
    )


def require_branch(facts: UpstreamFacts, timeline: int) -> None:
    """Raise StandbyError unless ``timeline``, of the archive, leads to the server's own.

    A primary that another one has replaced is on an older timeline: what followed it
    would stand still, or part from the data.
    """
    if facts.timeline == timeline:
        return
    ancestors: set[int] = set()
    if facts.history:
        history = TimelineHistory.parse(facts.timeline, facts.history.decode(errors="replace"))
        ancestors = {switch.timeline for switch in history.switches}
    if timeline not in ancestors:
        raise StandbyError(
            f"{facts.where} is on timeline {facts.timeline}, and the archive goes on to timeline"
            f" {timeline}, which does not lead there",
            hint="is it an old primary that another one has replaced? Name the present one",
        )


def _require_usable(facts: UpstreamFacts) -> None:
    found = facts.slot
    if found is None:
        return
    if found.kind != PHYSICAL:
        raise SlotError(
            f"the replication slot {found.name!r} of {facts.where} is {found.kind}",
            hint="name another one; a standby needs a physical slot",
        )
    if found.is_active:
        raise SlotError(
            f"the replication slot {found.name!r} is in use by process {found.active_pid} of"
            f" {facts.where}",
            hint="each standby needs a slot of its own: name another one",
        )
    if found.wal_status == LOST:
        raise SlotError(
            f"the replication slot {found.name!r} of {facts.where} has lost its WAL",
            hint=f"drop it (pgrecall wal slots --drop {found.name}) and run this again: it is"
            " made anew",
        )
