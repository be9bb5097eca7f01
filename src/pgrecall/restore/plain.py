"""A backup's files as pg_basebackup writes them: nothing of ours, for anybody's tools."""

from __future__ import annotations

import os
import re

from pgrecall.model.manifest import ExternalFile
from pgrecall.restore.run import RestoreRun

# In files from outside of PGDATA these lead to production's files.
_PLACES = re.compile(
    rb"^([ \t]*(?:data_directory|hba_file|ident_file|external_pid_file)[ \t=])", re.M | re.I
)
_NAMES = {"config": "postgresql.conf", "hba": "pg_hba.conf", "ident": "pg_ident.conf"}


class PlainRun(RestoreRun):
    """Writes a data directory that no recovery is configured for; tablespaces beside it.

    Its links in pg_tblspc are left out: where they lead is known when the copy is moved to its
    place. The server's own manifest covers what is written.
    """

    def _configure(self) -> None:
        self._progress.phase("configure")
        self._extra = {
            b"backup_label": self._root.backup_label,
            **configuration_inside(self._root.external_files),
        }
        for name in ("recovery.signal", "standby.signal", "tablespace_map"):
            if os.path.lexists(os.path.join(self._directory, name)):
                os.unlink(os.path.join(self._directory, name))
        for path, content in self._extra.items():
            self._put(path, content)
        for space in self._job.tablespaces:
            os.unlink(os.path.join(self._directory, "pg_tblspc", str(space.oid)))


def configuration_inside(external: tuple[ExternalFile, ...]) -> dict[bytes, bytes]:
    """Configuration files from outside of PGDATA (Debian's /etc), as files in it; pure.

    Those that are included are put beside, by their paths from where the main file was.
    """
    configs = [file for file in external if file.role == "config"]
    base = os.path.dirname(configs[0].path) if configs else ""
    files = {}
    for file in external:
        if file.role in _NAMES:
            name = _NAMES[file.role]
        elif base and file.path.startswith(base + "/"):
            name = os.path.relpath(file.path, base)
        else:
            continue
        files[os.fsencode(name)] = _PLACES.sub(rb"# \1", file.content)
    return files
