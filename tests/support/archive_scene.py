"""A data directory, a repository, and the program between them as PostgreSQL runs it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgrecall.app.invocation_path import pgrecall_command
from tests.support.wal_scene import Scene, build_segments

DESTINATION = "pg_wal/RECOVERYXLOG"


class Archive(Scene):
    """A scene, and the program as PostgreSQL runs it: in PGDATA, with an environment."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.config = path / "pgrecall.toml"
        self.write_config()
        ((self.name, self.content),) = build_segments(1).items()
        self.write(self.name, self.content)
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(path)}

    def write_config(self, more: str = "") -> None:
        self.config.write_text(
            "[servers.main]\n"
            f"data_directory = {json.dumps(str(self.pgdata), ensure_ascii=False)}\n"
            '[wal]\nretry_seconds = 0\n[repositories.one]\nstore = "local"\n'
            f"path = {json.dumps(str(self.path / 'one'), ensure_ascii=False)}\n{more}",
            encoding="utf-8",
        )

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """The program with ``--config``; options of Popen, ``env`` on top of the usual."""
        environment: Mapping[str, str] = options.pop("env", {})
        program = options.pop("program", pgrecall_command())
        return subprocess.Popen(
            [*program, "--config", str(self.config), *words],
            **{
                "cwd": self.pgdata,
                "env": {**self.environment, **environment},
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
                **options,
            },
        )

    def run(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        process = self.start(*words, **options)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def push_it(self, **options: Any) -> subprocess.CompletedProcess[str]:
        """As archive_command: a path relative to PGDATA."""
        return self.run("wal", "push", f"pg_wal/{self.name}", **options)

    def fetch_it(self, name: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
        """As restore_command."""
        return self.run("wal", "fetch", name or self.name, DESTINATION, **options)

    @property
    def delivered(self) -> Path:
        return self.pgdata / DESTINATION

    @property
    def is_archived(self) -> bool:
        return self.object_path(self.name).exists()

    def leftovers(self) -> list[str]:
        """What lies in pg_wal beside the segment."""
        return sorted({path.name for path in (self.pgdata / "pg_wal").iterdir()} - {self.name})
