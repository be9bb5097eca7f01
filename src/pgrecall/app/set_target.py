"""The new server that a set is loaded into: made by initdb in an empty directory."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.copy_place import choose_place
from pgrecall.app.requests import SetRestoreRequest
from pgrecall.drill.place import stop_instance
from pgrecall.errors import DestinationError, PostgresRightsError, UsageError
from pgrecall.further_errors import SetError
from pgrecall.model.captures import CaptureRecord
from pgrecall.model.dumps import DumpCompletion, DumpedDatabase
from pgrecall.postgres.client_tools import ClientTools, find_client_tools
from pgrecall.postgres.configuration import quote_setting
from pgrecall.postgres.initdb import like, run_initdb
from pgrecall.postgres.instance import Instance, InstanceSettings
from pgrecall.postgres.tools import find_bin_directory
from pgrecall.restore.claim import claimed
from pgrecall.restore.destination import check_directory, check_place, check_writable
from pgrecall.settings import ServerSettings
from pgrecall.system.durable import write_durable
from pgrecall.system.faults import reached

_MARKER = "pgrecall_unfinished_set.json"
_NEW = "pgrecall_new"
_LOCATION = re.compile(rb"^(CREATE TABLESPACE [^\n]* LOCATION )('(?:[^']|'')*')", re.MULTILINE)


class _Unfinished(msgspec.Struct, frozen=True):
    """What a restore leaves in its directory until it is done."""

    set_id: str


class NewServer:
    """One server in one directory. Raises DestinationError, ToolMissingError, UsageError."""

    def __init__(
        self,
        context: RunContext,
        request: SetRestoreRequest,
        capture: CaptureRecord,
        dump: DumpCompletion,
        databases: Sequence[DumpedDatabase],
    ) -> None:
        if request.host or request.user:
            raise UsageError(
                "--host and --user name a server that is there, --target-dir makes a new one",
                hint="give one of them",
            )
        if os.geteuid() == 0:
            raise PostgresRightsError(
                "PostgreSQL refuses to run as root",
                hint="run it as the user that is to own the server: runuser -u postgres -- ...",
            )
        self._context = context
        self._set_id = request.set_id
        self._capture = capture
        self._dump = dump
        self._databases = databases
        self._directory = os.path.abspath(request.target_dir)
        self._port = request.port
        server = context.server
        # What a newer pg_dump wrote need not load into the version that it came from.
        major = self._major = max(dump.server_major, dump.tool_major)
        self._binaries = find_bin_directory(
            major,
            configured=server.bin_directory if major == dump.server_major else "",
            data_directory=server.data_directory,
        )
        self.tools: ClientTools = find_client_tools(
            major, configured=server.bin_directory, data_directory=server.data_directory
        )
        self._unfinished = _unfinished_in(self._directory)
        self._check()

    @property
    def words(self) -> str:
        """The target, for a plan."""
        return f"a new server of PostgreSQL {self._major} in {self._directory}"

    @property
    def goes_on(self) -> str:
        """What is in the way and will be cleared; empty: nothing."""
        if self._unfinished is None:
            return ""
        return f"an interrupted restore of {self._unfinished.set_id} is removed, and begun anew"

    @contextmanager
    def running(self) -> Iterator[ServerSettings]:
        """Make and start it; it lives on when the block ends well, and is gone otherwise."""
        with claimed([self._directory]):
            self._clear()
            write_durable(
                os.path.join(self._directory, _MARKER),
                [msgspec.json.encode(_Unfinished(self._set_id))],
            )
            try:
                self._make()
                with self._started() as server:
                    yield server
                    os.unlink(os.path.join(self._directory, _MARKER))
            except BaseException:
                self._clear()
                raise

    def _make(self) -> None:
        """initdb wants an empty directory: it gets one in ours, whose content then moves up."""
        self._context.progress.phase("make the server")
        new = Path(self._directory, _NEW)
        by_name = {one.name: one.properties for one in self._databases}
        properties = by_name.get("template1") or by_name.get("postgres")
        arguments = like(
            properties, major=self._major, checksums=self._capture.facts.data_checksums
        )
        run_initdb(
            str(self._binaries),
            str(new),
            self._context.environment,
            superuser=self._dump.bootstrap_role,
            arguments=["--auth-local=trust", "--auth-host=scram-sha-256", *arguments],
        )
        reached("set-restore.initdb")
        for name in os.listdir(new):
            os.rename(new / name, os.path.join(self._directory, name))
        new.rmdir()
        os.chmod(self._directory, 0o700)

    @contextmanager
    def _started(self) -> Iterator[ServerSettings]:
        place = choose_place(self._directory, self._port)
        lines = [
            "\n# Written by pgrecall set restore",
            f"port = {place.port}",
            f"unix_socket_directories = {quote_setting(place.socket_directory)}",
            "listen_addresses = ''",
        ]
        if any(slot.kind == "logical" for slot in self._capture.facts.slots):
            lines.append("wal_level = logical")
        with open(os.path.join(self._directory, "postgresql.conf"), "a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        settings = InstanceSettings(
            bin_directory=str(self._binaries),
            pgdata=self._directory,
            port=place.port,
            socket_directory=place.socket_directory,
            log_path=os.path.join(self._directory, "pgrecall_set_restore.log"),
            user=self._dump.bootstrap_role,
        )
        with Instance(settings) as instance:
            instance.start(self._context.environment)
            instance.wait(("open",))
            yield instance.server
            instance.keep()

    def _check(self) -> None:
        """The directory must be empty, or hold what an interrupted restore has left."""
        stores = [one.path for one in self._context.settings.repositories.values() if one.path]
        check_writable(self._directory)
        if self._unfinished is None:
            check_directory(self._directory, "the directory")
            check_place(self._directory, stores)

    def _clear(self) -> None:
        """Remove everything that was made here, and stop what runs in it."""
        marker = os.path.join(self._directory, _MARKER)
        if not os.path.exists(marker):
            check_directory(self._directory, "the directory")
            return
        stop_instance(Path(self._directory))
        for made in _tablespace_directories(Path(self._directory)):
            shutil.rmtree(made)
        for name in sorted(os.listdir(self._directory)):
            path = os.path.join(self._directory, name)
            if path == marker:
                continue
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        os.unlink(marker)


def mapped_globals(script: bytes, places: Mapping[str, str]) -> bytes:
    """A script of globals whose tablespaces are made in new directories (``places``, by old)."""

    def moved(match: re.Match[bytes]) -> bytes:
        old = match[2][1:-1].replace(b"''", b"'").decode()
        new = places.get(old, old).replace("'", "''")
        return match[1] + b"'" + new.encode() + b"'"

    return _LOCATION.sub(moved, script)


def _tablespace_directories(pgdata: Path) -> Iterator[Path]:
    """What this server has made in its tablespaces: a directory that is named by its version.

    CREATE TABLESPACE refuses a place where there is one: so it is nobody else's.
    """
    try:
        major = (pgdata / "PG_VERSION").read_text(encoding="ascii").strip()
        links = list((pgdata / "pg_tblspc").iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    for link in links:
        if link.is_symlink():
            yield from link.resolve().glob(f"PG_{major}_*")


def _unfinished_in(directory: str) -> _Unfinished | None:
    try:
        content = Path(directory, _MARKER).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DestinationError(
            f"{directory} cannot be used: {error.strerror}",
            hint="run it as the user that owns the directory, or choose another --target-dir",
        ) from error
    try:
        return msgspec.json.decode(content, type=_Unfinished)
    except msgspec.DecodeError as error:
        raise SetError(
            f"{directory}/{_MARKER} cannot be read: {error}",
            hint="look at what is there, and empty the directory by hand",
        ) from error
