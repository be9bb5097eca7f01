"""What every run is given: settings, environment, progress, identity, and leave to act."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from pgrecall.settings import RepositorySettings, ServerSettings, Settings
from pgrecall.system.progress import Progress


class Approve(Protocol):
    """Shows a plan and says whether it may be carried out."""

    def __call__(self, plan: msgspec.Struct, *, question: str = "") -> bool:
        """Show ``plan``; True: carry it out, False: stop here, as a dry run does.

        ``question`` is asked when the act replaces or destroys something; empty:
        nobody needs to be asked. Raises ConfirmationError when the answer is no,
        or when nobody can be asked and --yes was not given.
        """
        ...


class Surroundings:
    """A run before there are settings (init, demo)."""

    __slots__ = ("approve", "environment", "progress", "run_id")

    def __init__(
        self, *, environment: Mapping[str, str], progress: Progress, run_id: str, approve: Approve
    ) -> None:
        self.environment = environment
        self.progress = progress
        self.run_id = run_id
        self.approve = approve


class RunContext(Surroundings):
    """A run with settings. ``server_name`` and ``repository_name`` are the options, or None."""

    __slots__ = ("repository_name", "server_name", "settings")

    def __init__(
        self,
        settings: Settings,
        surroundings: Surroundings,
        *,
        server_name: str | None = None,
        repository_name: str | None = None,
    ) -> None:
        super().__init__(
            environment=surroundings.environment,
            progress=surroundings.progress,
            run_id=surroundings.run_id,
            approve=surroundings.approve,
        )
        self.settings = settings
        self.server_name = server_name
        self.repository_name = repository_name

    @property
    def server(self) -> ServerSettings:
        """The server that was chosen, or the only one; raises SettingsError."""
        return self.settings.server(self.server_name)

    @property
    def repositories(self) -> list[RepositorySettings]:
        """The chosen repository, or all of the server's; raises SettingsError."""
        if self.repository_name is not None:
            return [self.settings.repository(self.repository_name)]
        return self.settings.repositories_of(self.server)


def approving(context: RunContext, approve: Approve) -> RunContext:
    """The same run, whose plans ``approve`` decides: for what is a part of something larger."""
    surroundings = Surroundings(
        environment=context.environment,
        progress=context.progress,
        run_id=context.run_id,
        approve=approve,
    )
    return RunContext(
        context.settings,
        surroundings,
        server_name=context.server_name,
        repository_name=context.repository_name,
    )
