"""A root directory with PostgreSQL, a shell, the client, and nothing else: no Python.

As in the stock image, and less: PostgreSQL's processes are put into it by chroot(2), in a
user namespace of their own where the user of the tests is no root (user_namespaces(7)).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from pgrecall.agent.client_file import install_client
from pgrecall.system.processes import processes_under
from tests.support.postgresql import Installation

POSTGRES = "/pg"
SHARED = "/shared"
DEADLINE_SECONDS = 60.0


def can_change_root() -> str:
    """Empty when it can be done here; otherwise why not."""
    finished = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return finished.stderr.strip()


class BareRoot:
    """``path`` becomes the root; ``shared`` in it is the volume that the agent shares."""

    def __init__(self, path: Path, installation: Installation) -> None:
        self.path = path
        self.shared = path / SHARED.strip("/")
        self.shared.mkdir()
        for name in ("dev", "tmp", "bin", "run"):
            (path / name).mkdir()
        pginstall = installation.bin_directory.parent
        for part in ("bin", "lib", "share"):
            shutil.copytree(pginstall / part, path / POSTGRES.strip("/") / part, symlinks=True)
        shutil.copy2(Path("/bin/sh").resolve(), path / "bin" / "sh")
        programs = [path / "bin" / "sh", *(path / "pg" / "bin").iterdir()]
        for program in [*programs, *(path / "pg" / "lib").glob("*.so*")]:
            self._take_libraries_of(program)
        install_client(str(self.shared))
        self._postmaster: subprocess.Popen[bytes] | None = None

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A program in there, with an empty environment."""
        return subprocess.run(
            self._argv(*words), env={}, capture_output=True, text=True, check=False
        )

    def pythons(self) -> list[str]:
        """Everything in there that could be a Python."""
        return [str(found) for found in self.path.rglob("*python*") if found.is_file()]

    def start(self, pgdata: str, log: Path) -> None:
        """Start the postmaster on a directory in there; returns when it answers."""
        with log.open("ab") as output:
            self._postmaster = subprocess.Popen(
                self._argv(f"{POSTGRES}/bin/postgres", "-D", pgdata, "-k", "/run"),
                env={},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        status = self.path / pgdata.strip("/") / "postmaster.pid"
        deadline = time.monotonic() + DEADLINE_SECONDS
        while "ready" not in (status.read_text() if status.exists() else ""):
            assert self._postmaster.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)

    def lose(self, pgdata: str) -> None:
        """The host dies and its disk with it."""
        assert self._postmaster is not None
        directory = self.path / pgdata.strip("/")
        self._postmaster.kill()
        self._postmaster.wait(DEADLINE_SECONDS)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while processes_under(directory):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        shutil.rmtree(directory)

    def end(self) -> None:
        """End the server if it runs."""
        if self._postmaster is not None and self._postmaster.poll() is None:
            self._postmaster.terminate()
            self._postmaster.wait(DEADLINE_SECONDS)

    def _argv(self, *words: str) -> list[str]:
        # The devices are mounted by a root of the first namespace; in the second one the user
        # is who he was, because PostgreSQL refuses to be root.
        user, group = os.geteuid(), os.getegid()
        inner = [
            *("unshare", "--user", f"--map-user={user}", f"--map-group={group}"),
            *("--root", str(self.path), "--wd", "/", "--", *words),
        ]
        mount = f'mount --rbind /dev "{self.path}/dev" && exec "$@"'
        outer = ["unshare", "--user", "--map-root-user", "--mount", "--"]
        path = "PATH=/usr/bin:/bin:/usr/sbin:/sbin"
        env = [shutil.which("env") or "/usr/bin/env", path, *outer]
        return [*env, "sh", "-c", mount, "sh", "env", "-i", "PATH=/usr/bin", *inner]

    def _take_libraries_of(self, program: Path) -> None:
        said = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
        for library in re.findall(r"(/\S+) \(0x", said):
            target = self.path / library.strip("/")
            if not target.exists() and not library.startswith(str(self.path)):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(Path(library).resolve(), target)


@contextlib.contextmanager
def bare_root(path: Path, installation: Installation) -> Iterator[BareRoot]:
    """A root whose server is ended whatever happens."""
    root = BareRoot(path, installation)
    try:
        yield root
    finally:
        root.end()
