"""``wal enable`` decided: what a server has, what it needs, and in which way it gets it. Pure.

Each rule of a setting says what is good enough: what is fine is left alone, and said to be so.
Values of pg_settings are in its units: archive_timeout in seconds, wal_keep_size in MiB.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from pgrecall.model.findings import Finding
from pgrecall.postgres.configuration import quote_setting
from pgrecall.postgres.parameters import Parameter, ParameterFacts
from pgrecall.postgres.roles import RoleChange, RoleFacts
from pgrecall.postgres.slots import PHYSICAL, SlotState

Doing = Literal["set", "keep", "by hand", "make", "grant", "show"]
CommandKind = Literal["as wished", "ours", "none", "foreign"]

#: Every setting that is looked at; those beyond the first seven only for what they do to these.
SETTINGS = (
    "wal_level", "archive_mode", "archive_command", "archive_timeout", "max_wal_senders",
    "max_replication_slots", "wal_keep_size", "archive_library", "max_slot_wal_keep_size",
    "wal_log_hints", "summarize_wal", "logging_collector",
)  # fmt: skip

_TRUE = frozenset({"on", "true", "yes", "1"})
_FALSE = frozenset({"off", "false", "no", "0"})
# One for a receiver and one for `backup --with-wal`, beside standbys that come and go.
_LEAST_SENDERS = 2
_USUAL = 10
_COMMAND_LINE = "command line"


class EnableWishes(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for. None: not said, the usual value if nothing is set; "" or False: no.

    ``archive_command`` as it is to be. ``role`` and ``slot`` empty: none. ``replaces``: a command
    of another tool may be replaced.
    """

    archive_command: str
    archive_timeout_seconds: int | None = None
    wal_keep_mib: int | None = None
    role: str = ""
    slot: str = ""
    replaces: bool = False


class EnableFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the server said.

    ``command``: its archive_command is "as wished", runs pgrecall otherwise ("ours"), is not there
    ("none"), or belongs to something else. ``slot``: the wished one, None if it is absent.
    """

    major: int
    has_checksums: bool
    parameters: ParameterFacts
    command: CommandKind
    role: RoleFacts | None = None
    slot: SlotState | None = None


class EnableStep(msgspec.Struct, frozen=True):
    """One thing: ``now`` and ``new`` are values as people write them; ``takes`` effect by."""

    what: str
    doing: Doing
    now: str
    new: str
    takes: str
    why: str


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The plan's content. ``settings`` are those to be set by us, in this order.

    ``by_hand`` are lines for postgresql.conf; a finding that fails forbids everything.
    ``restart_for`` names what counts only after a restart, configured earlier or now.
    """

    steps: tuple[EnableStep, ...]
    settings: tuple[tuple[str, str], ...]
    by_hand: tuple[str, ...]
    restart_for: tuple[str, ...]
    role: RoleChange | None
    makes_slot: bool
    findings: tuple[Finding, ...]


class _Rule(msgspec.Struct, frozen=True):
    """``value`` to set unless ``is_fine`` says that the present one will do, because ``fine``."""

    name: str
    value: str
    is_fine: Callable[[str], bool]
    why: str
    fine: str = "is right already"


def decide(facts: EnableFacts, wishes: EnableWishes) -> Decision:
    """Put the plan together; raises nothing, what stands in the way is a finding that fails."""
    steps: list[EnableStep] = []
    settings: list[tuple[str, str]] = []
    by_hand: list[str] = []
    restart_for: list[str] = []
    findings = _obstacles(facts, wishes)
    for rule, parameter, step in _setting_steps(facts, wishes):
        steps.append(step)
        if step.doing == "set":
            settings.append((rule.name, rule.value))
        elif step.doing == "by hand":
            by_hand.append(f"{rule.name} = {quote_setting(rule.value)}")
            if parameter.source == _COMMAND_LINE:
                findings.append(_on_the_command_line(rule, parameter))
        if step.takes == "restart":
            restart_for.append(rule.name)
    change = _role_change(facts.role)
    if facts.role is not None:
        steps += _role_steps(facts.role, change)
    if wishes.slot:
        steps.append(_slot_step(wishes.slot, facts.slot))
    return Decision(
        steps=tuple(steps),
        settings=tuple(settings),
        by_hand=tuple(by_hand),
        restart_for=tuple(restart_for),
        role=change,
        makes_slot=bool(wishes.slot) and facts.slot is None,
        findings=(*findings, *_advice(facts, wishes)),
    )


# --- settings ------------------------------------------------------------------------


def _rules(facts: EnableFacts, wishes: EnableWishes) -> list[_Rule]:
    timeout, keep = wishes.archive_timeout_seconds, wishes.wal_keep_mib
    return [
        _Rule(
            "wal_level", "replica", lambda value: value in {"replica", "logical"},
            "minimal WAL is not enough to recover from",
        ),
        _Rule(
            "max_wal_senders", str(_USUAL), lambda value: int(value) >= _LEAST_SENDERS,
            "streaming and backup --with-wal need connections of their own",
        ),
        _Rule(
            "max_replication_slots", str(_USUAL), lambda value: int(value) >= 1,
            "a receiver holds a slot",
        ),
        _Rule(
            "wal_keep_size", f"{1024 if keep is None else keep}MB",
            (lambda value: int(value) > 0) if keep is None else (lambda value: int(value) == keep),
            "a receiver or standby without a slot can be away for so much WAL",
        ),
        _Rule(
            "archive_timeout", f"{60 if timeout is None else timeout}s",
            (lambda value: int(value) > 0) if timeout is None
            else (lambda value: int(value) == timeout),
            "an idle server archives what it has after this time",
        ),
        _Rule(
            "archive_command", wishes.archive_command, lambda _: facts.command == "as wished",
            "each finished segment is pushed into every repository",
        ),
        # Last: nothing may be archived before there is where to.
        _Rule(
            "archive_mode", "on", lambda value: value in {"on", "always"}, "WAL is archived at all"
        ),
    ]  # fmt: skip


def _setting_steps(
    facts: EnableFacts, wishes: EnableWishes
) -> list[tuple[_Rule, Parameter, EnableStep]]:
    """All by hand where one is: a server whose wal_level is still minimal would not start with
    archive_mode or max_wal_senders that were set already."""
    found = [
        (rule, facts.parameters.by_name[rule.name])
        for rule in _rules(facts, wishes)
        if rule.name in facts.parameters.by_name
    ]
    steps = [(rule, one, _setting(rule, one, facts.parameters)) for rule, one in found]
    if not any(step.doing == "by hand" for _, _, step in steps):
        return steps
    return [
        (rule, one, msgspec.structs.replace(step, doing="by hand") if step.doing == "set" else step)
        for rule, one, step in steps
    ]


def _setting(rule: _Rule, parameter: Parameter, facts: ParameterFacts) -> EnableStep:
    takes = "restart" if parameter.needs_restart else "reload"
    counts_later = parameter.is_pending and parameter.file_value is not None
    later = _normal(rule.name, parameter.file_value or "") if counts_later else parameter.value
    now = _shown(parameter)
    if rule.is_fine(later):
        if counts_later:
            return EnableStep(
                rule.name, "keep", now, later, "restart", "configured already, and not yet counted"
            )
        return EnableStep(rule.name, "keep", now, now, "", rule.fine)
    if parameter.source == _COMMAND_LINE:
        return EnableStep(
            rule.name, "by hand", now, rule.value, takes,
            "given on the postmaster's command line, which wins over every file",
        )  # fmt: skip
    if not (facts.allows_alter and facts.has_files and parameter.may_alter):
        return EnableStep(rule.name, "by hand", now, rule.value, takes, rule.why)
    return EnableStep(rule.name, "set", now, rule.value, takes, rule.why)


def _normal(name: str, text: str) -> str:
    """A value as files have it, as pg_settings would show it."""
    word = text.strip().lower()
    if name != "archive_mode":
        return text if name == "archive_command" else word
    if word in _TRUE:
        return "on"
    return "off" if word in _FALSE else word


def _shown(parameter: Parameter) -> str:
    if not parameter.unit or parameter.value in {"0", "-1"}:
        return parameter.value or "(empty)"
    return f"{parameter.value}{parameter.unit}"


def _on_the_command_line(rule: _Rule, parameter: Parameter) -> Finding:
    return _fail(
        f"{rule.name} is given on the postmaster's command line as {parameter.value!r}: no file can"
        " change it",
        f"start the server with {rule.name}={rule.value}, or without that option",
    )


def _obstacles(facts: EnableFacts, wishes: EnableWishes) -> list[Finding]:
    found = []
    by_name = facts.parameters.by_name
    library = by_name.get("archive_library")
    if library is not None and library.value:
        both = (
            "together with archive_command that is an error" if facts.major >= 16
            else "archive_command would not be used"
        )  # fmt: skip
        found.append(
            _fail(
                f"archive_library is {library.value!r}: {both}",
                "if that module's archive is given up: ALTER SYSTEM SET archive_library = ''; then"
                " SELECT pg_reload_conf(); and enable again",
            )
        )
    if facts.command == "foreign" and not wishes.replaces:
        found.append(
            _fail(
                f"archive_command belongs to something else: {by_name['archive_command'].value}",
                "if pgrecall is to take its place, say --replace: the old one is recorded, and"
                " --undo brings it back. What it archived stays where it is",
            )
        )
    if "\n" in wishes.archive_command or "\r" in wishes.archive_command:
        found.append(
            _fail(
                "the path of the configuration, or the server's name, has a line break:"
                " PostgreSQL takes no such archive_command",
                "move the configuration file, or rename the server",
            )
        )
    if facts.slot is not None and facts.slot.kind != PHYSICAL:
        found.append(
            _fail(
                f"the replication slot {facts.slot.name!r} is a {facts.slot.kind} one",
                "choose another name in receive.slot",
            )
        )
    if wishes.role.startswith("pg_") or wishes.role in {"public", "none"}:
        found.append(
            _fail(f"the role name {wishes.role!r} is reserved by PostgreSQL", "choose another")
        )
    return found


# --- role and slot ---------------------------------------------------------------------


def _role_change(role: RoleFacts | None) -> RoleChange | None:
    if role is None or role.is_superuser:
        return None
    change = RoleChange(
        name=role.name,
        database=role.database,
        makes=not role.exists,
        logs_in=role.exists and not role.can_login,
        replicates=role.exists and not role.can_replicate,
        connects=not role.can_connect,
        functions=role.missing_functions,
        roles=role.missing_roles,
    )
    return None if change.is_empty else change


def _role_steps(role: RoleFacts, change: RoleChange | None) -> list[EnableStep]:
    what = f"role {role.name!r}"
    if change is None:
        why = "is a superuser" if role.is_superuser else "has every right that is needed"
        return [EnableStep(what, "keep", "there", "there", "", why)]
    steps = []
    if change.makes:
        steps.append(
            EnableStep(what, "make", "absent", "LOGIN REPLICATION", "at once", "no superuser")
        )
    elif change.logs_in or change.replicates:
        words = [("LOGIN", change.logs_in), ("REPLICATION", change.replicates)]
        new = " ".join(word for word, is_wanted in words if is_wanted)
        steps.append(EnableStep(what, "grant", "without", new, "at once", "to connect and stream"))
    given = [*change.roles, *(function.partition("(")[0] for function in change.functions)]
    if change.connects:
        given.append(f"CONNECT on {role.database}")
    if given:
        why = "to back up, switch WAL, make restore points, and see settings and statistics"
        steps.append(EnableStep(what, "grant", "without", ", ".join(given), "at once", why))
    return steps


def _slot_step(name: str, slot: SlotState | None) -> EnableStep:
    what = f"slot {name!r}"
    if slot is not None:
        return EnableStep(what, "keep", slot.kind, slot.kind, "", "is there already")
    why = "for wal receive; it keeps no WAL until a receiver has connected"
    return EnableStep(what, "make", "absent", "physical", "at once", why)


def _advice(facts: EnableFacts, wishes: EnableWishes) -> list[Finding]:
    found = []
    by_name = facts.parameters.by_name
    if not facts.parameters.allows_alter:
        found.append(
            _warn("allow-alter-system", "allow_alter_system is off: settings are changed by hand")
        )
    elif not facts.parameters.has_files:
        found.append(
            _warn(
                "rights-settings",
                "this role may not read pg_file_settings: settings are changed by hand",
                "run it as a superuser with --admin ROLE",
            )
        )
    slots = by_name.get("max_slot_wal_keep_size")
    if wishes.slot and slots is not None and slots.value == "-1":
        found.append(
            _warn(
                "slot-unbounded",
                "max_slot_wal_keep_size is -1: a receiver that is gone lets pg_wal grow until the"
                " disk is full",
                "ALTER SYSTEM SET max_slot_wal_keep_size = '10GB'; as much as pg_wal has room for",
            )
        )
    hints, summaries = by_name.get("wal_log_hints"), by_name.get("summarize_wal")
    if hints is not None and hints.value == "off" and not facts.has_checksums:
        found.append(
            _warn(
                "wal-log-hints",
                "without page checksums and wal_log_hints a server cannot be rewound (pg_rewind)",
                "ALTER SYSTEM SET wal_log_hints = on; or pg_checksums --enable while it is stopped",
            )
        )
    if summaries is not None and summaries.value == "off":
        found.append(
            _warn(
                "summarize-wal",
                "summarize_wal is off: incremental backups will have to read every file",
                "ALTER SYSTEM SET summarize_wal = on; SELECT pg_reload_conf();",
            )
        )
    return found


def _fail(message: str, hint: str) -> Finding:
    return Finding(severity="fail", code="archiving-refused", message=message, hint=hint)


def _warn(code: str, message: str, hint: str = "") -> Finding:
    return Finding(severity="warn", code=code, message=message, hint=hint)
