"""Retention policies: what is kept, and the shipped profiles with their targets. Values only."""

from __future__ import annotations

import msgspec

_HOUR = 3600.0


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a server in one repository; any rule that keeps a thing is enough.

    ``keep_last``: that many good backups. ``keep_days``: those not older than that.
    ``keep_hourly`` to ``keep_yearly``: the newest of each of so many periods (UTC) that have
    one. ``pitr_window_hours``: any moment of so many hours can be reached; 0: any moment since
    the oldest kept backup. Targets in seconds, 0: none. ``profile``: what it was made of, or
    empty.
    """

    name: str = ""
    profile: str = ""
    keep_last: int = 0
    keep_days: int = 0
    keep_hourly: int = 0
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_monthly: int = 0
    keep_yearly: int = 0
    pitr_window_hours: int = 0
    rpo_seconds: float = 0.0
    rto_seconds: float = 0.0

    @property
    def keeps_everything(self) -> bool:
        """True when no rule says that anything may ever go."""
        return not any(getattr(self, name) for name in (*KEEP_RULES, "pitr_window_hours"))


KEEP_RULES = (
    "keep_last",
    "keep_days",
    "keep_hourly",
    "keep_daily",
    "keep_weekly",
    "keep_monthly",
    "keep_yearly",
)

# The retention table of the guide: WAL 48 hours, daily 30 days, weekly 90 days (13 weeks),
# monthly 1 year (12 months). docs/retention.md says where the guide contradicts itself.
_SMALL = Policy(
    profile="small-production",
    keep_daily=30,
    keep_weekly=13,
    keep_monthly=12,
    pitr_window_hours=48,
    rpo_seconds=_HOUR / 4,
    rto_seconds=_HOUR / 2,
)
_LARGE = msgspec.structs.replace(
    _SMALL, profile="large-production", rpo_seconds=_HOUR / 12, rto_seconds=_HOUR / 4
)
_CRITICAL = msgspec.structs.replace(
    _SMALL,
    profile="critical",
    pitr_window_hours=14 * 24,
    rpo_seconds=_HOUR / 60,
    rto_seconds=_HOUR / 12,
)
_DEVELOPMENT = Policy(
    profile="development",
    keep_last=2,
    keep_daily=7,
    pitr_window_hours=24,
    rpo_seconds=24 * _HOUR,
    rto_seconds=_HOUR,
)

PROFILES: dict[str, Policy] = {
    policy.profile: policy for policy in (_DEVELOPMENT, _SMALL, _LARGE, _CRITICAL)
}


class ComponentTarget(msgspec.Struct, frozen=True):
    """What the guide asks for one component; ``keep_days`` 0: the policy's own rules."""

    component: str
    rto_seconds: float
    rpo_seconds: float
    keep_days: int = 0


# For the kinds that join the catalog later, and for the page of the profiles.
COMPONENT_TARGETS = (
    ComponentTarget("configuration", _HOUR / 12, 0.0, 90),
    ComponentTarget("dump of a database", _HOUR, 24 * _HOUR, 30),
    ComponentTarget("dump of everything", 2 * _HOUR, 24 * _HOUR, 30),
    ComponentTarget("WAL archive", _HOUR, _HOUR / 4),
    ComponentTarget("backup", _HOUR, 24 * _HOUR),
    ComponentTarget("snapshot", _HOUR / 2, 24 * _HOUR, 14),
)
