"""What is left to do by hand on a server so that it archives: lines and statements to paste."""

from __future__ import annotations

import shlex

import msgspec

from pgrecall.postgres.configuration import quote_setting
from pgrecall.postgres.facts import ServerFacts
from pgrecall.postgres.statements import alter_system

_RESTART = "the server must be restarted"
_RELOAD = "counts after SELECT pg_reload_conf();"


class NextStep(msgspec.Struct, frozen=True):
    """One thing to do: why, and the lines to paste."""

    why: str
    lines: tuple[str, ...]


def archiving_steps(
    facts: ServerFacts | None, archive_command: str, config: str, server: str
) -> tuple[NextStep, ...]:
    """The steps from a fresh configuration to the first backup.

    ``facts`` None: the server did not answer, so everything is named. Settings
    that are right already are left out.
    """
    wanted = _wanted(facts, archive_command)
    steps = []
    if wanted:
        steps.append(
            NextStep(
                "put this into postgresql.conf",
                tuple(f"{name} = {_conf_value(value)}  # {why}" for name, value, why in wanted),
            )
        )
        steps.append(
            NextStep(
                "or, as a superuser in psql, the same",
                tuple(alter_system(name, value) for name, value, _ in wanted),
            )
        )
        needs_restart = any(why == _RESTART for _, _, why in wanted)
        steps.append(NextStep("then", ("restart PostgreSQL",) if needs_restart else (_reload(),)))
    options = shlex.join(["--config", config, "--server", server])
    steps.append(
        NextStep(
            "prove that it works, and make the first backup",
            (f"pgrecall check {options}", f"pgrecall backup {options}"),
        )
    )
    return tuple(steps)


def _wanted(facts: ServerFacts | None, archive_command: str) -> list[tuple[str, str, str]]:
    found = []
    if facts is None or facts.wal_level == "minimal":
        found.append(("wal_level", "replica", _RESTART))
    if facts is None or facts.archive_mode == "off":
        found.append(("archive_mode", "on", _RESTART))
    if facts is not None and facts.archive_library:
        found.append(("archive_library", "", _RELOAD))
    if facts is None or facts.archive_command != archive_command:
        found.append(("archive_command", archive_command, _RELOAD))
    return found


def _conf_value(value: str) -> str:
    return value if value.isalpha() else quote_setting(value)


def _reload() -> str:
    return "SELECT pg_reload_conf();"
