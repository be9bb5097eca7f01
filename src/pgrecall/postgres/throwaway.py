"""A new, empty instance that only this process uses, and that is gone afterwards."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pgrecall.postgres.initdb import run_initdb
from pgrecall.postgres.instance import Instance, InstanceSettings
from pgrecall.settings import ServerSettings

_PORT = 5432
# Nothing of it outlives the process: it need not be durable, and it talks to nobody.
_OVERRIDES = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "archive_mode": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "4GB",
    "autovacuum": "off",
}


@contextmanager
def throwaway_instance(
    bin_directory: str, place: Path, environment: Mapping[str, str], *, superuser: str
) -> Iterator[ServerSettings]:
    """Make one below ``place`` (which others may not enter) and start it; how to connect to it.

    It is stopped when the block is left, its files stay. Raises PostgresError, RecoveryError.
    """
    # A path of its own: that of a socket may have some hundred bytes only.
    sockets = tempfile.mkdtemp(prefix="pgrecall-socket-")
    try:
        with _started(bin_directory, place, environment, superuser, sockets) as server:
            yield server
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


@contextmanager
def _started(
    bin_directory: str,
    place: Path,
    environment: Mapping[str, str],
    superuser: str,
    sockets: str,
) -> Iterator[ServerSettings]:
    pgdata = place / "data"
    run_initdb(
        bin_directory,
        str(pgdata),
        environment,
        superuser=superuser,
        arguments=["--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"],
    )
    settings = InstanceSettings(
        bin_directory=bin_directory,
        pgdata=str(pgdata),
        port=_PORT,
        socket_directory=sockets,
        log_path=str(place / "server.log"),
        user=superuser,
        overrides=_OVERRIDES,
    )
    with Instance(settings) as instance:
        instance.start(environment)
        instance.wait(("open",))
        yield instance.server
