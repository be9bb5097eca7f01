"""``wal enable`` decided: facts in, steps with reasons out."""

from __future__ import annotations

from typing import Any

import pytest

from pgrecall.postgres.parameters import Parameter, ParameterFacts
from pgrecall.postgres.roles import RoleFacts, needed_functions
from pgrecall.postgres.slots import SlotState
from pgrecall.wal.enabling_plan import Decision, EnableFacts, EnableWishes, decide

COMMAND = '/usr/bin/pgrecall --config /etc/p.toml --server main wal push "%p"'
FRESH = {
    "wal_level": "minimal",
    "archive_mode": "off",
    "archive_command": "",
    "archive_timeout": "0",
    "max_wal_senders": "0",
    "max_replication_slots": "10",
    "wal_keep_size": "0",
    "archive_library": "",
    "max_slot_wal_keep_size": "-1",
    "wal_log_hints": "off",
    "summarize_wal": "off",
}
RIGHT = {
    **FRESH,
    "wal_level": "logical",
    "archive_mode": "always",
    "archive_command": COMMAND,
    "archive_timeout": "300",
    "max_wal_senders": "10",
    "wal_keep_size": "64",
}
_AT_START = {"wal_level", "archive_mode", "max_wal_senders", "max_replication_slots"}
_UNITS = {"archive_timeout": "s", "wal_keep_size": "MB"}


def parameters(
    values: dict[str, str], *, has_files: bool = True, allows: bool = True, **changes: Any
) -> ParameterFacts:
    """``changes``: a parameter's fields by its name."""
    return ParameterFacts(
        {
            name: Parameter(
                **{
                    "name": name,
                    "value": value,
                    "unit": _UNITS.get(name, ""),
                    "needs_restart": name in _AT_START,
                    **changes.get(name, {}),
                }
            )
            for name, value in values.items()
        },
        has_files,
        allows,
        "/etc/postgresql.conf",
    )


def decided(
    facts: ParameterFacts, *, command: Any = "none", checksums: bool = True, **wishes: Any
) -> Decision:
    role, slot = wishes.pop("role_facts", None), wishes.pop("slot_facts", None)
    return decide(
        EnableFacts(
            major=18,
            has_checksums=checksums,
            parameters=facts,
            command=command,
            role=role,
            slot=slot,
        ),
        EnableWishes(archive_command=COMMAND, **wishes),
    )


def fails(decision: Decision) -> list[str]:
    return [finding.message for finding in decision.findings if finding.severity == "fail"]


def test_a_fresh_server_gets_everything_and_archive_mode_last() -> None:
    decision = decided(parameters(FRESH))
    assert [name for name, _ in decision.settings] == [
        "wal_level", "max_wal_senders", "wal_keep_size", "archive_timeout", "archive_command",
        "archive_mode",
    ]  # fmt: skip
    assert dict(decision.settings)["archive_timeout"] == "60s"
    assert decision.restart_for == ("wal_level", "max_wal_senders", "archive_mode")
    assert fails(decision) == []
    assert all(step.why for step in decision.steps)


def test_what_is_right_is_left_alone_and_said() -> None:
    decision = decided(parameters(RIGHT), command="as wished")
    assert (decision.settings, decision.by_hand, decision.restart_for) == ((), (), ())
    assert {step.doing for step in decision.steps} == {"keep"}
    assert {step.now for step in decision.steps} >= {"logical", "300s", "64MB"}


def test_wishes_win_over_what_would_do() -> None:
    decision = decided(
        parameters(RIGHT), command="as wished", archive_timeout_seconds=0, wal_keep_mib=2048
    )
    assert dict(decision.settings) == {"archive_timeout": "0s", "wal_keep_size": "2048MB"}


def test_what_waits_for_a_restart_is_not_set_again() -> None:
    waiting = {"is_pending": True, "file_value": "true"}
    decision = decided(parameters({**RIGHT, "archive_mode": "off"}, archive_mode=waiting))
    assert "archive_mode" not in dict(decision.settings)
    assert decision.restart_for == ("archive_mode",)
    lost = {"is_pending": True, "file_value": "off"}
    decision = decided(parameters(RIGHT, archive_mode=lost))
    assert dict(decision.settings)["archive_mode"] == "on"


@pytest.mark.parametrize("how", [{"has_files": False}, {"allows": False}])
def test_what_cannot_be_set_is_said(how: dict[str, bool]) -> None:
    decision = decided(parameters(FRESH, **how))  # type: ignore[arg-type]
    assert decision.settings == ()
    assert "archive_mode = 'on'" in decision.by_hand
    assert "by hand" in decision.findings[0].message
    assert fails(decision) == []


def test_a_single_parameter_that_may_not_be_altered() -> None:
    decision = decided(parameters(FRESH, wal_level={"may_alter": False}))
    # With archive_mode set and wal_level still minimal the server would not start again.
    assert decision.settings == ()
    assert {line.partition(" ")[0] for line in decision.by_hand} >= {"wal_level", "archive_mode"}


def test_the_command_line_wins_over_every_file() -> None:
    decision = decided(parameters(FRESH, archive_mode={"source": "command line"}))
    assert "command line" in fails(decision)[0]
    # What is right there is nobody's trouble.
    assert not fails(decided(parameters(RIGHT, archive_mode={"source": "command line"})))


def test_a_foreign_command_and_a_library_are_refused() -> None:
    foreign = parameters({**FRESH, "archive_command": "cp %p /x/%f"})
    assert "cp %p /x/%f" in fails(decided(foreign, command="foreign"))[0]
    assert fails(decided(foreign, command="foreign", replaces=True)) == []
    library = parameters({**FRESH, "archive_library": "basic_archive"})
    assert "archive_library" in fails(decided(library))[0]
    assert fails(decided(parameters(FRESH), command="ours")) == []


def test_an_own_command_of_another_form_is_set_right() -> None:
    decision = decided(parameters({**RIGHT, "archive_command": "pgrecall ..."}), command="ours")
    assert decision.settings == (("archive_command", COMMAND),)


def test_the_role_gets_what_it_lacks_and_no_more() -> None:
    functions = needed_functions(18)
    absent = RoleFacts("r", False, "db", missing_functions=functions, missing_roles=("pg_monitor",))
    change = decided(parameters(RIGHT), role_facts=absent).role
    assert change is not None and change.makes and change.functions == functions
    whole = RoleFacts("r", True, "db", can_login=True, can_replicate=True)
    assert decided(parameters(RIGHT), role_facts=whole).role is None
    partly = RoleFacts("r", True, "db", can_login=True, missing_functions=functions[:1])
    change = decided(parameters(RIGHT), role_facts=partly).role
    assert change is not None
    assert (change.makes, change.logs_in, change.replicates) == (False, False, True)
    assert change.functions == functions[:1]
    root = RoleFacts("r", True, "db", is_superuser=True)
    assert decided(parameters(RIGHT), role_facts=root).role is None


def test_the_slot_and_what_bounds_it() -> None:
    decision = decided(parameters(FRESH), slot="s")
    assert decision.makes_slot
    assert "slot-unbounded" in {finding.code for finding in decision.findings}
    there = SlotState(name="s", kind="physical", is_active=False)
    assert not decided(parameters(FRESH), slot="s", slot_facts=there).makes_slot
    other = SlotState(name="s", kind="logical", is_active=False)
    assert "logical" in fails(decided(parameters(FRESH), slot="s", slot_facts=other))[0]


def test_advice_is_given_where_it_applies() -> None:
    codes = {finding.code for finding in decided(parameters(FRESH), checksums=False).findings}
    assert codes == {"wal-log-hints", "summarize-wal"}
    old = {name: value for name, value in FRESH.items() if name != "summarize_wal"}
    assert decided(parameters(old)).findings == ()


@pytest.mark.parametrize("role", ["pg_backup", "public", "none"])
def test_reserved_roles(role: str) -> None:
    assert "reserved" in fails(decided(parameters(FRESH), role=role))[0]
