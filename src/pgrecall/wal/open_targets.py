"""The repositories of one server, kept open for pushing, and proven again before each batch."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence

from pgrecall.settings.collection import Settings
from pgrecall.settings.sections import RepositorySettings, ServerSettings
from pgrecall.wal.push import required_repositories
from pgrecall.wal.source import Source
from pgrecall.wal.targets import PROOF_SECONDS, Target, open_target, target_store


class _Entry:
    __slots__ = ("lock", "proven_at", "repository", "target")

    def __init__(self, repository: RepositorySettings) -> None:
        self.repository = repository
        self.lock = threading.Lock()
        self.target: Target | None = None
        self.proven_at = -math.inf


class OpenTargets:
    """Opens each repository when it is first needed. Thread-safe.

    What is kept: the connection, repository.json (with it the key of raw digests)
    and the generation; they never change. Who owns the archive does, and where the
    server's timeline was left: both are asked again when the last answer is older
    than PROOF_SECONDS, or after ``doubt``.
    """

    def __init__(
        self, settings: Settings, server: ServerSettings, environment: Mapping[str, str]
    ) -> None:
        """Nothing is sent yet; raises SettingsError when no repository is required."""
        self._settings = settings
        self._server = server
        self._environment = environment
        repositories = required_repositories(settings, server)
        self._entries = {repository.name: _Entry(repository) for repository in repositories}
        self.required = [each.name for each in repositories if each.role == "required"]
        self.best_effort = [each.name for each in repositories if each.role != "required"]

    def target(self, name: str, source: Source) -> Target:
        """The repository ``name``, proven, for the system of ``source``.

        Raises IdentityError, NotOwnerError, RepositoryError, StoreError.
        """
        entry = self._entries[name]
        system_identifier = source.system()[0]
        with entry.lock:
            target = entry.target
            now = time.monotonic()
            if target is None or target.generation.system_identifier != system_identifier:
                store = target_store(self._settings, entry.repository, self._environment)
                entry.target = target = open_target(
                    entry.repository, store, self._server.name, source
                )
                entry.proven_at = now
            elif now - entry.proven_at > PROOF_SECONDS:
                # A repository that was made anew is opened anew by the next attempt.
                entry.target = None
                target.prove(source)
                entry.target = target
                entry.proven_at = now
            return target

    def doubt(self) -> None:
        """Have every repository proven again before anything more is written to it."""
        for entry in self._entries.values():
            with entry.lock:
                entry.proven_at = -math.inf

    def opened(self, names: Sequence[str] = ()) -> list[Target]:
        """The repositories that are open now, of ``names`` or all."""
        entries = [self._entries[name] for name in names or self._entries]
        return [entry.target for entry in entries if entry.target is not None]
