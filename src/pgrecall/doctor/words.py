"""The commands that mend, as a shell takes them. Pure; quoting is shlex's and psycopg's."""

from __future__ import annotations

import shlex

import msgspec

from pgrecall.postgres.configuration import quote_setting
from pgrecall.postgres.statements import alter_system

_RELOAD = "SELECT pg_reload_conf();"


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """How programs are called for this server.

    ``pgrecall`` with configuration and server; ``psql`` with host, port, role and database.
    ``pg_ctl`` and ``pg_checksums`` empty: not on this host. ``data_directory`` likewise.
    ``owner``: who owns PGDATA, when that is somebody else than who asks.
    """

    pgrecall: tuple[str, ...]
    psql: tuple[str, ...]
    server: str
    role: str
    archive_command: str
    data_directory: str = ""
    pg_ctl: str = ""
    pg_checksums: str = ""
    owner: str = ""

    def run(self, *words: str) -> str:
        """A command of pgrecall's."""
        return shlex.join([*self.pgrecall, *words])

    def sql(self, *statements: str) -> str:
        """Statements, each in a transaction of its own: ALTER SYSTEM goes into none."""
        words = [*self.psql]
        for statement in statements:
            words += ["-c", statement]
        return shlex.join(words)

    def setting(self, name: str, value: str) -> str:
        """Change a setting for which a reload is enough."""
        return self.sql(alter_system(name, value), _RELOAD)

    def setting_with_restart(self, name: str, value: str) -> tuple[str, ...]:
        """Change a setting, and restart where that can be done from here."""
        return (self.sql(alter_system(name, value)), *self.control("restart"))

    def control(self, *words: str) -> tuple[str, ...]:
        """pg_ctl on PGDATA; nothing when the server is on another host.

        The log goes to a file: the server would hold the shell's output open.
        """
        if not self.pg_ctl or not self.data_directory:
            return ()
        log = () if words == ("stop",) else ("-l", f"{self.data_directory}/pg_ctl.log")
        return (self.as_owner(self.pg_ctl, *words, "-w", "-D", self.data_directory, *log),)

    def reload_of(self, directory: str) -> tuple[str, ...]:
        """Have the server of another data directory read its settings again."""
        return (self.as_owner(self.pg_ctl, "reload", "-D", directory),) if self.pg_ctl else ()

    def as_owner(self, *words: str) -> str:
        """A command that only the owner of PGDATA may run."""
        return shlex.join([*(["sudo", "-u", self.owner] if self.owner else []), *words])

    def append_setting(self, directory: str, name: str, value: str) -> str:
        """Set something in a data directory whose server cannot be asked."""
        line = shlex.quote(f"{name} = {quote_setting(value)}")
        file = shlex.quote(f"{directory}/postgresql.auto.conf")
        command = f"printf '%s\\n' {line} >> {file}"
        return self.as_owner("sh", "-c", command) if self.owner else command
