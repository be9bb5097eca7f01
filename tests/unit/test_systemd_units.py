"""The units call commands that exist, and know the statuses that a restart does not mend."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from pgrecall.cli.tree import root
from pgrecall.errors import AgentRunningError, InterruptedRunError, SettingsError

UNITS = Path(__file__).parents[2] / "packaging" / "systemd"


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / name)
    return parser


@pytest.mark.parametrize("path", sorted(UNITS.glob("*.service")), ids=lambda path: path.name)
def test_the_command_exists(path: Path) -> None:
    words = unit(path.name)["Service"]["ExecStart"].split()
    program, *rest = words
    assert program == "/usr/bin/pgrecall"
    command = next(word for word in rest[4:] if not word.startswith("-"))
    assert rest[:4] == ["--config", "/etc/pgrecall/pgrecall.toml", "--server", "%I"]
    assert command in root.table


def test_the_agent_is_not_restarted_for_nothing() -> None:
    service = unit("pgrecall-agent@.service")["Service"]
    statuses = {int(word) for word in service["RestartPreventExitStatus"].split()}
    assert statuses == {SettingsError.exit_status, AgentRunningError.exit_status}
    assert service["SuccessExitStatus"] == str(InterruptedRunError.exit_status)
    assert (service["Type"], service["NotifyAccess"]) == ("notify", "main")


@pytest.mark.parametrize("path", sorted(UNITS.glob("*.timer")), ids=lambda path: path.name)
def test_a_timer_has_its_service_and_catches_up(path: Path) -> None:
    assert path.with_suffix(".service").exists()
    assert unit(path.name)["Timer"]["Persistent"] == "true"
