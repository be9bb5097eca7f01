"""The command line as a user types it, inside this process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pgrecall.app.checking import CheckResult
from pgrecall.cli.entry import main
from pgrecall.errors import CheckFailedError
from tests.support.postgresql import PostgresServer


@dataclass(frozen=True)
class Outcome:
    """What a command line came to."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Standard output as the one JSON document that it must be."""
        document = json.loads(self.out)
        assert isinstance(document, dict)
        return document

    def findings(self, severity: str) -> dict[str, dict[str, str]]:
        """Findings of a severity by code."""
        return {
            finding["code"]: finding
            for finding in self.document["findings"]
            if finding["severity"] == severity
        }


class CommandLine:
    """Runs pgrecall with one configuration file and one server name."""

    def __init__(self, capsys: pytest.CaptureFixture[str], config: Path, server: str) -> None:
        self._capsys = capsys
        self.config = config
        self.server = server

    def __call__(self, *words: str) -> Outcome:
        """``pgrecall --config ... --server ... words``."""
        self._capsys.readouterr()
        status = main(["--config", str(self.config), "--server", self.server, *words])
        captured = self._capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    def init(self, server: PostgresServer, repository: Path, *words: str) -> Outcome:
        """``init`` of a running server, of which only the port is said."""
        path = ("--path", str(repository), "--repository", "main")
        return self("init", "--port", str(server.port), *path, *words)


def paste(server: PostgresServer, lines: list[str]) -> None:
    """Put lines of ``init`` into postgresql.conf as they stand, and restart."""
    with (server.pgdata / "postgresql.conf").open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    server.restart()


def objects(repository: Path) -> list[str]:
    """Every file of a local repository, hidden ones too, without the journal of runs."""
    return sorted(
        str(path.relative_to(repository))
        for path in repository.rglob("*")
        if path.is_file() and not {path.parts[-3], path.parts[-5]} & {"runs", "chains"}
    )


class Scene:
    """A server ``main`` that archives into ``repository`` by ``cli``'s configuration."""

    def __init__(
        self, cli: CommandLine, server: PostgresServer, repository: Path, *words: str
    ) -> None:
        self.cli = cli
        self.server = server
        self.repository = repository
        made = cli.init(server, repository, "--json", *words)
        assert made.status == 0, made
        paste(server, made.document["steps"][0]["lines"])

    def configure(self, **settings: object) -> None:
        self.server.configure(**settings)
        self.server.reload()

    def failures(self, *words: str) -> dict[str, dict[str, str]]:
        """Findings that fail, by code; each has a cure, and the status says it."""
        outcome = self.cli("check", "--json", *words)
        assert outcome.status == CheckFailedError.exit_status, outcome
        document = outcome.document
        assert document.pop("schema") == "pgrecall/check/1"
        assert msgspec.convert(document, CheckResult).result == "fail"
        found = outcome.findings("fail")
        assert all(finding["hint"] for finding in found.values()), found
        return found

    def passes(self, *words: str) -> dict[str, dict[str, str]]:
        """Nothing fails; returns the warnings by code."""
        outcome = self.cli("check", "--json", *words)
        assert outcome.status == 0, outcome
        return outcome.findings("warn")
