"""All settings together: what every command is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pgrecall.errors import SettingsError
from pgrecall.settings.declare import Section, did_you_mean
from pgrecall.settings.dumps import DrillSettings, DumpSettings
from pgrecall.settings.policies import PolicySettings, RetentionSettings
from pgrecall.settings.replication import ReplicationSettings
from pgrecall.settings.sections import (
    AgentSettings,
    BackupSettings,
    CopySettings,
    LogSettings,
    ReceiveSettings,
    RepositorySettings,
    RestoreSettings,
    RunsSettings,
    ScheduleSettings,
    ServerSettings,
    TargetSettings,
    VerifySettings,
    WalSettings,
)

_T = TypeVar("_T")


class Settings:
    """The settings of one run; ``path`` is the file they came from, or empty.

    Immutable by convention: nothing changes it after loading.
    """

    __slots__ = (
        "agent", "backup", "copy", "drill", "dump", "log", "path", "policies", "receive",
        "replication", "repositories", "restore", "retention", "runs", "schedule", "servers",
        "targets", "verify", "wal",
    )  # fmt: skip

    def __init__(
        self,
        *,
        servers: Mapping[str, ServerSettings] | None = None,
        repositories: Mapping[str, RepositorySettings] | None = None,
        policies: Mapping[str, PolicySettings] | None = None,
        **sections: Section | str,
    ) -> None:
        self.servers: dict[str, ServerSettings] = dict(servers or {})
        self.repositories: dict[str, RepositorySettings] = dict(repositories or {})
        self.policies: dict[str, PolicySettings] = dict(policies or {})
        self.backup = _section(sections.pop("backup", None), BackupSettings)
        self.drill = _section(sections.pop("drill", None), DrillSettings)
        self.dump = _section(sections.pop("dump", None), DumpSettings)
        self.verify = _section(sections.pop("verify", None), VerifySettings)
        self.copy = _section(sections.pop("copy", None), CopySettings)
        self.wal = _section(sections.pop("wal", None), WalSettings)
        self.agent = _section(sections.pop("agent", None), AgentSettings)
        self.receive = _section(sections.pop("receive", None), ReceiveSettings)
        self.schedule = _section(sections.pop("schedule", None), ScheduleSettings)
        self.targets = _section(sections.pop("targets", None), TargetSettings)
        self.restore = _section(sections.pop("restore", None), RestoreSettings)
        self.retention = _section(sections.pop("retention", None), RetentionSettings)
        self.replication = _section(sections.pop("replication", None), ReplicationSettings)
        self.runs = _section(sections.pop("runs", None), RunsSettings)
        self.log = _section(sections.pop("log", None), LogSettings)
        self.path: str = str(sections.pop("path", ""))
        if sections:
            raise TypeError(f"there are no settings {', '.join(sorted(sections))}")

    def server(self, name: str | None = None) -> ServerSettings:
        """The server called ``name``, or the only one there is; raises SettingsError."""
        if name is not None:
            return _named(self.servers, name, "server", self.path)
        return _only(self.servers, "server", self.path)

    def repository(self, name: str | None = None) -> RepositorySettings:
        """The repository called ``name``, or the only one there is; raises SettingsError."""
        if name is not None:
            return _named(self.repositories, name, "repository", self.path)
        return _only(self.repositories, "repository", self.path)

    def repositories_of(self, server: ServerSettings) -> list[RepositorySettings]:
        """The repositories of ``server``, required ones first; raises SettingsError for none."""
        names = server.repositories or tuple(self.repositories)
        if not names:
            raise SettingsError(
                f"no repository is configured for server {server.name!r}{_in_file(self.path)}",
                hint="add a table like [repositories.main] with store and path, or run init",
            )
        found = [_named(self.repositories, name, "repository", self.path) for name in names]
        return sorted(found, key=lambda repository: repository.role != "required")


def _section(given: object, kind: type[_T]) -> _T:
    if given is None:
        return kind()
    if not isinstance(given, kind):
        raise TypeError(f"expected {kind.__name__}, not {type(given).__name__}")
    return given


def _named(known: Mapping[str, _T], name: str, what: str, path: str) -> _T:
    if name in known:
        return known[name]
    raise SettingsError(
        f"there is no {what} {name!r}{_in_file(path)}{did_you_mean(name, known)}",
        hint=_list_hint(known, what),
    )


def _only(known: Mapping[str, _T], what: str, path: str) -> _T:
    if len(known) == 1:
        return next(iter(known.values()))
    count = "no" if not known else f"more than one ({len(known)})"
    raise SettingsError(
        f"{count} {what} is configured{_in_file(path)}", hint=_list_hint(known, what)
    )


def _list_hint(known: Mapping[str, object], what: str) -> str:
    if not known:
        plural = "servers" if what == "server" else "repositories"
        return f"add a table like [{plural}.main], or run pgrecall init"
    return f"choose with --{what}: {', '.join(repr(name) for name in known)}"


def _in_file(path: str) -> str:
    return f" in {path}" if path else ""
