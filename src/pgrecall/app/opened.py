"""A server's repositories, opened: what every command that needs one begins with."""

from __future__ import annotations

from collections.abc import Mapping

from pgrecall.app.context import RunContext
from pgrecall.errors import RepositoryError, SettingsError
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.identity import (
    RepositoryIdentity,
    latest_generation,
    open_repository,
)
from pgrecall.repository.opening import open_store
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.settings import RepositorySettings
from pgrecall.store.base import Store


class OpenedRepository:
    """One repository: its settings, its store, and who it says it is."""

    def __init__(self, settings: RepositorySettings, environment: Mapping[str, str]) -> None:
        """Open it; raises RepositoryError when there is none, StoreError when it can't be told."""
        self.settings = settings
        self.store: Store = open_store(settings, environment)
        self.identity: RepositoryIdentity = open_repository(self.store)

    def catalog(self, server: str) -> Catalog:
        """The backups of a server in this repository."""
        return Catalog(self.store, server)


def main_repository(context: RunContext) -> OpenedRepository:
    """The repository that backups go to and come from: the chosen one, or the first required."""
    candidates = context.repositories
    required = [settings for settings in candidates if settings.role == "required"]
    if not candidates:
        raise SettingsError(
            f"the server {context.server.name!r} has no repository",
            hint="add a table [repositories.NAME] to the configuration file",
        )
    return OpenedRepository((required or candidates)[0], context.environment)


def newest_archive(opened: OpenedRepository, server: str) -> WalArchive:
    """The WAL archive of a server's newest generation; RepositoryError when it has none."""
    generation = latest_generation(opened.store, server)
    if generation is None:
        raise RepositoryError(
            f"{opened.store.name} does not know the server {server!r}",
            hint="pgrecall init makes it known; is the name right?",
        )
    return WalArchive(opened.store, server, generation)
