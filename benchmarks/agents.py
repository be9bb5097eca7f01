"""pgrecall's agent and its client, as tools that archive a backlog."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import Service, measure
from benchmarks.peers import Commands, Pgrecall
from benchmarks.places import RepositoryPlace


class PgrecallAgent(Pgrecall):
    """The agent with its client: one small process for each segment, the work in one place.

    Warm: the agent runs already when the backlog comes, as it does on a server whose repository
    was out of reach. Cold: it is started when the clock starts, and ended before it stops.
    """

    def __init__(
        self,
        place: Path,
        program: Path,
        client: str,
        *,
        is_warm: bool,
        repository: RepositoryPlace | None = None,
    ) -> None:
        label = f"agent zstd:1, {'warm' if is_warm else 'cold'}"
        settings = f'[agent]\ndirectory = "{place}/agent"\n'
        super().__init__(label, place, program, settings, repository)
        self._client = client
        self._socket = f"{place}/agent/main/agent.sock"
        self._is_warm = is_warm

    def push(self, segments: Sequence[Path]) -> Commands:
        return [[self._client, "push", "--socket", self._socket, str(path)] for path in segments]

    def service(self) -> Service:
        return Service([*self._start(), "agent"], self._socket, self._is_warm)

    def answered_seconds(self, segments: Sequence[Path]) -> list[float]:
        """Seconds of each call, all segments being pushed ahead already."""
        calls = self.push(segments)
        run = measure([*calls, *calls], service=self.service(), samples=False)
        return run.calls[len(calls) :]
