"""What the agent does for the archive now and then: roll-ups of finished log directories."""

from __future__ import annotations

from collections.abc import Mapping

from pgrecall.agent.component import Facts
from pgrecall.app.opened import OpenedRepository, newest_archive
from pgrecall.repository.wal_rollups import write_rollups
from pgrecall.settings import ServerSettings, Settings


def roll_up(settings: Settings, server: ServerSettings, environment: Mapping[str, str]) -> Facts:
    """Store the roll-ups that are missing in every repository of a server; how many were.

    Raises StoreError, RepositoryError; what was stored until then stays.
    """
    written, problems = 0, []
    for repository in settings.repositories_of(server):
        opened = OpenedRepository(repository, environment)
        archive = newest_archive(opened, server.name)
        made, findings = write_rollups(
            archive.store, server.name, archive.generation, opened.identity.repository_id
        )
        written += len(made)
        problems += [f"{repository.name}: {finding.message}" for finding in findings]
    return {"rolled_up": written, "problems": "; ".join(problems) or None}
