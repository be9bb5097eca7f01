"""The settings of a restored instance: how it recovers, and what keeps it from harming production.

Pure text work on postgresql.auto.conf, which PostgreSQL reads last. Facts 2, 19
and 22: settings that restore owns are commented out with a date wherever they
stand, and said anew; nothing else is touched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

from pgrecall.model.targets import (
    Immediate,
    Latest,
    RecoveryTarget,
    ToLsn,
    ToName,
    ToTime,
    ToXid,
)
from pgrecall.postgres.configuration import quote_setting

TARGETS = (
    "recovery_target",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
    "recovery_target_lsn",
)
OWNED = frozenset(
    {
        *TARGETS,
        "recovery_target_inclusive",
        "recovery_target_timeline",
        "recovery_target_action",
        "restore_command",
        "recovery_end_command",
        "archive_cleanup_command",
        "primary_conninfo",
        "primary_slot_name",
    }
)
# Libraries that run jobs by themselves: a copy must not send mails and move money twice.
JOB_LIBRARIES = frozenset({"pg_cron", "pg_partman_bgw"})

# Written into a copy so that it harms nobody; a copy that takes over gets its own ones back.
ISOLATION = frozenset(
    {
        "archive_mode",
        "listen_addresses",
        "synchronous_standby_names",
        "max_logical_replication_workers",
        "external_pid_file",
        "shared_preload_libraries",
        "timescaledb.max_background_workers",
        "log_directory",
        "port",
        "unix_socket_directories",
    }
)

IN_PLACE_TABLESPACES = "allow_in_place_tablespaces"
_FOR_RECOVERY = (OWNED | {IN_PLACE_TABLESPACES, "ignore_invalid_pages"}) - {"primary_conninfo"}

_SETTING = re.compile(r"^\s*([A-Za-z_][A-Za-z0-9_.]*)\s*(=|\s)")
_BEGIN = "# Written by pgrecall restore"
_HIDDEN = "  # commented out by pgrecall restore at "


def rewrite_auto_conf(text: str, settings: Mapping[str, str], *, now: datetime) -> str:
    """The new postgresql.auto.conf: what restore owns or sets is commented out, then said anew."""
    stamp = now.strftime("%Y-%m-%d %H:%M:%SZ")
    replaced = OWNED | set(settings)
    lines = []
    for line in text.splitlines():
        match = _SETTING.match(line)
        if match is not None and match.group(1).lower() in replaced:
            lines.append(f"# {line}{_HIDDEN}{stamp}")
        else:
            lines.append(line)
    lines.append(f"{_BEGIN} at {stamp}")
    lines.extend(f"{name} = {quote_setting(value)}" for name, value in settings.items())
    return "\n".join(lines) + "\n"


def clear_targets(text: str, *, now: datetime) -> str:
    """Comment out targets and restore_command after recovery has ended (fact 19)."""
    stamp = now.strftime("%Y-%m-%d %H:%M:%SZ")
    lines = []
    for line in text.splitlines():
        match = _SETTING.match(line)
        if match is not None and match.group(1).lower() in _FOR_RECOVERY:
            lines.append(f"# {line}  # recovery ended at {stamp}")
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def lift_isolation(text: str, *, now: datetime) -> tuple[str, tuple[str, ...]]:
    """The postgresql.auto.conf of a copy that takes over, and the names of the settings lifted.

    What the last restore wrote to keep the copy apart is commented out, and what it had
    commented out for that purpose counts again. Nothing changes when it is lifted already.
    """
    lines = text.splitlines()
    begins = [place for place, line in enumerate(lines) if line.startswith(_BEGIN)]
    if not begins:
        return text, ()
    written = begins[-1]
    hidden_by_it = _HIDDEN + lines[written].removeprefix(f"{_BEGIN} at ")
    stamp = now.strftime("%Y-%m-%d %H:%M:%SZ")
    lifted = []
    for place, line in enumerate(lines):
        if place > written and _name_of(line) in ISOLATION:
            lifted.append(_name_of(line))
            lines[place] = f"# {line}  # taken over at {stamp}"
        elif place < written and line.startswith("# ") and line.endswith(hidden_by_it):
            original = line.removeprefix("# ").removesuffix(hidden_by_it)
            if _name_of(original) in ISOLATION:
                lines[place] = original
    return "\n".join(lines) + "\n", tuple(lifted)


def _name_of(line: str) -> str:
    match = _SETTING.match(line)
    return match.group(1).lower() if match is not None else ""


def recovery_settings(
    target: RecoveryTarget, *, restore_command: str, timeline: str, action: str
) -> dict[str, str]:
    """Settings for recovery to ``target``; ``timeline`` is a number, or latest for a standby.

    The targets that are not used are set to nothing first: one left over in
    postgresql.conf would stop recovery at an old point, or be FATAL beside the
    new one. The order matters: PostgreSQL takes the last that it reads.
    """
    settings = {
        "restore_command": restore_command,
        "recovery_end_command": "",
        "archive_cleanup_command": "",
        # Of postgresql.conf: they lead to the primary of then (fact 19).
        "primary_conninfo": "",
        "primary_slot_name": "",
        "recovery_target_timeline": timeline,
    }
    name, value, inclusive = _target_setting(target)
    settings.update({unused: "" for unused in TARGETS if unused != name})
    if name:
        settings["recovery_target_inclusive"] = "on" if inclusive else "off"
        settings["recovery_target_action"] = action
        settings[name] = value
    return settings


def _target_setting(target: RecoveryTarget) -> tuple[str, str, bool]:
    match target:
        case Latest():
            return "", "", True
        case Immediate():
            return "recovery_target", "immediate", True
        case ToTime():
            moment = target.at.isoformat(sep=" ", timespec="microseconds")
            return "recovery_target_time", moment, target.inclusive
        case ToLsn():
            return "recovery_target_lsn", str(target.lsn), target.inclusive
        case ToXid():
            return "recovery_target_xid", str(target.xid), target.inclusive
        case ToName():
            return "recovery_target_name", target.name, True


def isolation_settings(server_settings: Mapping[str, str]) -> dict[str, str]:
    """Settings that keep a copy from harming production (invariant 9a, fact 2).

    ``server_settings`` are pg_settings of the server at backup time.
    """
    settings = {
        "archive_mode": "off",
        "listen_addresses": "",
        "primary_conninfo": "",
        "primary_slot_name": "",
        "synchronous_standby_names": "",
        "max_logical_replication_workers": "0",
        "external_pid_file": "",
    }
    libraries = [
        name.strip()
        for name in server_settings.get("shared_preload_libraries", "").split(",")
        if name.strip()
    ]
    kept = [name for name in libraries if name.strip('"') not in JOB_LIBRARIES]
    if kept != libraries:
        settings["shared_preload_libraries"] = ",".join(kept)
    if "timescaledb" in kept:
        # It must stay loaded for its tables to be read; its jobs need not run.
        settings["timescaledb.max_background_workers"] = "0"
    if server_settings.get("log_directory", "").startswith("/"):
        settings["log_directory"] = "log"
    return settings


def raised_parameters(
    needed: Mapping[str, int], server_settings: Mapping[str, str]
) -> dict[str, str]:
    """Settings that recovery refuses to start below, where the server's own may be lower."""
    raised = {}
    for name, value in needed.items():
        configured = server_settings.get(name, "")
        if not configured.isdigit() or int(configured) < value:
            raised[name] = str(value)
    return raised
