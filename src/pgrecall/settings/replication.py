"""The settings of replication, declared once; light, as sections.py."""

from __future__ import annotations

from pgrecall.settings.declare import Section, setting

_DAY = 86_400.0


class ReplicationSettings(Section):
    """What is expected of standbys: ``[replication]``; ``replication status`` compares."""

    standbys: tuple[str, ...] = setting(
        default=(),
        doc="The standbys that are to stream, by application_name. One that is missing is a"
        " failure.",
    )
    warn_seconds: float = setting(
        default=60.0,
        unit="seconds",
        bounds=(0, 366 * _DAY),
        doc="How far a standby may be behind in time before it is a warning. 0: no bound.",
    )
    fail_seconds: float = setting(
        default=600.0, unit="seconds", bounds=(0, 366 * _DAY), doc="The same, for a failure."
    )
    warn_bytes: int = setting(
        default=0,
        unit="bytes",
        bounds=(0, 1 << 50),
        doc="How much WAL a standby may be behind before it is a warning. 0: no bound.",
    )
    fail_bytes: int = setting(
        default=0, unit="bytes", bounds=(0, 1 << 50), doc="The same, for a failure."
    )
    warn_retained_bytes: int = setting(
        default=0,
        unit="bytes",
        bounds=(0, 1 << 50),
        doc="How much WAL one slot may keep before it is a warning. 0: no bound.",
    )
    fail_retained_bytes: int = setting(
        default=0, unit="bytes", bounds=(0, 1 << 50), doc="The same, for a failure."
    )
