"""The sections of pgrecall.toml that say what is kept; light, as sections.py is."""

from __future__ import annotations

from pgrecall.settings.declare import Section, setting

_DAY = 86_400.0

_AS_PROFILE = " -1: as the profile says, or else 0: not by this rule."


class PolicySettings(Section):
    """What is kept: ``[policies.NAME]``, for servers and repositories that name it.

    Every rule that is met is enough to keep a thing; docs/retention.md explains them.
    """

    name: str = setting(default="", is_key=False, doc="The NAME of the table.")
    profile: str = setting(
        default="",
        choices=("", "development", "small-production", "large-production", "critical"),
        doc="The shipped policy that the other keys change. Empty: none.",
    )
    keep_last: int = setting(
        default=-1, bounds=(-1, 100_000), doc="So many good backups." + _AS_PROFILE
    )
    keep_days: int = setting(
        default=-1,
        unit="days",
        bounds=(-1, 36_600),
        doc="Backups that are not older than this." + _AS_PROFILE,
    )
    keep_hourly: int = setting(
        default=-1, bounds=(-1, 100_000), doc="The newest of so many hours." + _AS_PROFILE
    )
    keep_daily: int = setting(
        default=-1, bounds=(-1, 36_600), doc="The newest of so many days." + _AS_PROFILE
    )
    keep_weekly: int = setting(
        default=-1, bounds=(-1, 5_200), doc="The newest of so many weeks." + _AS_PROFILE
    )
    keep_monthly: int = setting(
        default=-1, bounds=(-1, 1_200), doc="The newest of so many months." + _AS_PROFILE
    )
    keep_yearly: int = setting(
        default=-1, bounds=(-1, 100), doc="The newest of so many years." + _AS_PROFILE
    )
    pitr_window_hours: int = setting(
        default=-1,
        unit="hours",
        bounds=(-1, 878_400),
        doc="Any moment of so many hours before the newest backup, and all since, can be reached."
        " 0: any since the oldest backup that is kept. -1: as the profile says, or else 0.",
    )
    rpo_seconds: float = setting(
        default=-1.0,
        unit="seconds",
        bounds=(-1, 366 * _DAY),
        doc="How much of the latest work may be lost at most. -1: as the profile says.",
    )
    rto_seconds: float = setting(
        default=-1.0,
        unit="seconds",
        bounds=(-1, 366 * _DAY),
        doc="How long it may take at most until the server is back. -1: as the profile says.",
    )


class RetentionSettings(Section):
    """How expire and purge work: ``[retention]``."""

    policy: str = setting(
        default="",
        doc="The policy or profile of servers that name none. Empty: nothing ever expires.",
    )
    grace_seconds: float = setting(
        default=3 * _DAY,
        unit="seconds",
        bounds=(0, 366 * _DAY),
        doc="How long what has expired can be brought back, before purge deletes it. It must be"
        " longer than lease_seconds.",
    )
    lease_seconds: float = setting(
        default=900.0,
        unit="seconds",
        bounds=(5, _DAY),
        doc="How long what a run uses is safe after the run was killed; while it lives, it renews"
        " its lease three times as often.",
    )
    captures_days: int = setting(
        default=90,
        unit="days",
        bounds=(0, 36_500),
        doc="How long captures are kept, where a policy lets anything expire. The newest stays, as"
        " does one that a kept backup names. 0: for ever.",
    )
    longest_pause_days: int = setting(
        default=45,
        unit="days",
        bounds=(1, 36_600),
        doc="Expire and purge take a longer step of time between the newest things in a repository"
        " for a clock that jumped, and refuse without --trust-clock.",
    )
