"""The component that notices when the server's configuration changes, in files and in effect."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable
from datetime import datetime

import msgspec

from pgrecall.agent.component import Fact, Facts
from pgrecall.codec.digests import stored_digest
from pgrecall.errors import AgentPlaceError, PgrecallError, PostgresError, PostgresRightsError
from pgrecall.postgres.configuration_sources import configuration_paths, configuration_rows
from pgrecall.postgres.connection import Connection
from pgrecall.system.clock import Clock
from pgrecall.system.durable import write_durable
from pgrecall.wal.agent_places import DIRECTORY_MODE

_log = logging.getLogger(__name__)

NAME = "configuration"
IN_EFFECT = "settings in effect"

_STATE = "configuration.json"
_PAUSE_SECONDS = 20.0
_USUAL_FILES = ("postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf")
_ABSENT = "absent"
_UNREADABLE = "unreadable"

Capture = Callable[[tuple[str, ...]], None]


class _Seen(msgspec.Struct, frozen=True):
    """What was seen last: digests by path (or IN_EFFECT), and the last change."""

    digests: dict[str, str]
    changed_at: datetime | None = None
    changed: tuple[str, ...] = ()


_SEEN = msgspec.json.Decoder(_Seen)


class ConfigurationWatch:
    """Compares every 20 seconds; a Component. A server that is down is a fact, not a failure.

    While the server answers, it names its files (with those that they include)
    and its settings, those of databases and roles among them. While it does not,
    the files that it named last are looked at. What changed while no agent ran is
    noticed too: digests are kept in ``directory``.

    Facts: ``is_connected``, ``changed_at``, ``changed`` (names), ``looked_at``,
    ``files``.
    """

    def __init__(
        self,
        data_directory: str,
        connect: Callable[[], Connection],
        directory: str,
        clock: Clock,
        capture: Capture | None = None,
    ) -> None:
        """``data_directory`` is empty for a server elsewhere: only what it says is compared.

        ``capture`` is told what changed, before it is remembered: one that raises
        a PgrecallError is told again at the next look.
        """
        self._data_directory = data_directory
        self._connect = connect
        self._path = os.path.join(directory, _STATE)
        self._clock = clock
        self._capture = capture
        self._connection: Connection | None = None
        self._seen: _Seen | None = None
        self._lock = threading.Lock()
        self._facts: dict[str, Fact] = {"is_connected": None, "changed_at": None}

    @property
    def name(self) -> str:
        """``configuration``."""
        return NAME

    def facts(self) -> Facts:
        """What was seen last."""
        with self._lock:
            return dict(self._facts)

    def run(self, stop: threading.Event) -> None:
        """Look until ``stop``; raises AgentPlaceError when what was seen cannot be kept."""
        try:
            while not stop.is_set():
                self.look()
                stop.wait(_PAUSE_SECONDS)
        finally:
            self.close()

    def look(self) -> tuple[str, ...]:
        """Compare once; returns what changed since the last look, which is nothing at the first."""
        before = self._seen or self._load()
        said = self._ask()
        digests = self._digests(before, said)
        now = self._clock.now()
        changed: tuple[str, ...] = ()
        if before is not None:
            names = digests.keys() | before.digests.keys()
            changed = tuple(
                sorted(name for name in names if digests.get(name) != before.digests.get(name))
            )
        if before is None or changed:
            self._remember(digests, before, changed, now)
        seen = self._seen
        with self._lock:
            self._facts = {
                "is_connected": said is not None,
                "changed_at": seen.changed_at.isoformat() if seen and seen.changed_at else None,
                "changed": ", ".join(seen.changed) if seen else None,
                "looked_at": now.isoformat(),
                "files": sum(name != IN_EFFECT for name in digests),
            }
        return changed

    def _remember(
        self,
        digests: dict[str, str],
        before: _Seen | None,
        changed: tuple[str, ...],
        now: datetime,
    ) -> None:
        if before is None:
            self._save(_Seen(digests))
            return
        _log.info("the server's configuration has changed", extra={"changed": ", ".join(changed)})
        if self._capture is not None:
            try:
                self._capture(changed)
            except PgrecallError as error:
                _log.error("the change could not be captured: %s", error.message)
                self._seen = before
                return
        self._save(_Seen(digests, now, changed))

    def _digests(self, before: _Seen | None, said: tuple[list[str], str] | None) -> dict[str, str]:
        if said is not None:
            paths, effect = said
        else:
            paths = [path for path in before.digests if path != IN_EFFECT] if before else []
            effect = before.digests.get(IN_EFFECT, "") if before else ""
        if self._data_directory:
            usual = (os.path.join(self._data_directory, name) for name in _USUAL_FILES)
            # Debian keeps most of them elsewhere: what never was there is nothing to watch.
            known = before.digests if before is not None else {}
            paths = [*paths, *(path for path in usual if os.path.exists(path) or path in known)]
            found = {path: _digest_of(path) for path in dict.fromkeys(paths)}
        else:
            found = {}
        if effect:
            found[IN_EFFECT] = effect
        return found

    def _ask(self) -> tuple[list[str], str] | None:
        """The server's files and the digest of what is in effect; None when it cannot be asked."""
        try:
            if self._connection is None or self._connection.is_closed:
                self._connection = self._connect()
            paths = configuration_paths(self._connection)
            rows = configuration_rows(self._connection)
        except PostgresRightsError as error:
            _log.warning("the server's configuration cannot be read: %s", error.message)
            self.close()
            return None
        except PostgresError:
            self.close()  # it is down, or starting; is_connected says so
            return None
        return paths, stored_digest(_canonical(rows)).hex()

    def close(self) -> None:
        """End the session with the server, if there is one; the next look makes another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _load(self) -> _Seen | None:
        try:
            with open(self._path, "rb") as file:
                self._seen = _SEEN.decode(file.read())
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            _log.warning("what was known of the configuration is damaged: %s", error)
            return None
        except OSError as error:
            raise self._unusable(error) from error
        return self._seen

    def _save(self, seen: _Seen) -> None:
        try:
            os.makedirs(os.path.dirname(self._path), DIRECTORY_MODE, exist_ok=True)
            write_durable(self._path, [msgspec.json.encode(seen)])
        except OSError as error:
            raise self._unusable(error) from error
        self._seen = seen

    def _unusable(self, error: OSError) -> AgentPlaceError:
        return AgentPlaceError(
            f"cannot keep what is known of the configuration in {self._path}: {error.strerror}",
            hint="the agent's user must own its directory, and there must be space",
        )


def _digest_of(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return stored_digest(file.read()).hex()
    except (FileNotFoundError, NotADirectoryError):
        return _ABSENT
    except OSError:
        return _UNREADABLE


def _canonical(rows: Iterable[tuple[object, ...]]) -> bytes:
    return msgspec.json.encode([[str(cell) for cell in row] for row in rows])
