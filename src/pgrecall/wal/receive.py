"""``wal receive``: take a server's WAL by streaming, durable here and then in the repositories.

A loop of sessions. Each proves first that the server is the one whose WAL is held
and that its WAL goes on where that ends (receive_opening, receive_plan); then
every byte goes into the spool (receive_spool), is flushed, and only then reported
to the server, while a thread stores what is whole (receive_worker).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime

from pgrecall.errors import (
    DestinationError,
    PgrecallError,
    PostgresError,
    PostgresUnreachableError,
    ReceiveError,
    SettingsError,
    SlotError,
    WalMissingError,
)
from pgrecall.model.lsn import Lsn
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.replication import NextTimeline, ReplicationSession
from pgrecall.postgres.slots import SlotState, slot_state
from pgrecall.repository.gaps import NOT_RECEIVED, Gap
from pgrecall.settings.collection import Settings
from pgrecall.settings.sections import ServerSettings
from pgrecall.system.memory import keep_freed_memory
from pgrecall.wal.agent_places import spool_directory
from pgrecall.wal.archives import parse_history
from pgrecall.wal.receive_opening import (
    Warnings,
    archive_frontier,
    bridge,
    diverged_bytes,
    gap_error,
    ready_slot,
    server_of,
    watch_commits,
    watch_slot,
)
from pgrecall.wal.receive_origin import ORIGIN_FILE, introduce, origin_of, read_origin
from pgrecall.wal.receive_plan import (
    Position,
    Server,
    SpoolDiverged,
    after_timeline,
    branch_start,
    check_lineage,
    is_on_other_branch,
    start_of,
)
from pgrecall.wal.receive_spool import Spool
from pgrecall.wal.receive_upload import Landing
from pgrecall.wal.receive_worker import Uploader

_log = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
"""An asynchronous receiver makes durable what it has at least so often while WAL comes."""

_STATUS_SECONDS = 10.0
_WATCH_SECONDS = 10.0
_LOCK_TIMEOUT = "1s"
_WAIT_SECONDS = 0.2
_BATCH_BYTES = 4 << 20
_PROMPT_BATCH_BYTES = 1 << 20
# A busy server sends a few kB a hundred times a second. Who makes nobody wait lets them gather;
# nothing is flushed later for it.
_FEW_BYTES = 256 << 10
_GATHER_SECONDS = 0.01
_FIRST_RETRY_SECONDS = 0.2
_LONGEST_RETRY_SECONDS = 15.0
# A walsender whose receiver was killed is noticed by wal_sender_timeout, 60 s by default.
_SLOT_BUSY_SECONDS = 90.0


class Terms:
    """What the operator agrees to for one run, and where it ends (None: at the signal)."""

    __slots__ = ("accepts_divergence", "accepts_gap", "until")

    def __init__(
        self,
        *,
        accepts_gap: bool = False,
        accepts_divergence: bool = False,
        until: Lsn | None = None,
    ) -> None:
        self.accepts_gap = accepts_gap
        self.accepts_divergence = accepts_divergence
        self.until = until


class Receiver:
    """Receives the WAL of one server; a component of the agent."""

    name = "receiver"

    def __init__(
        self,
        settings: Settings,
        server: ServerSettings,
        environment: Mapping[str, str],
        terms: Terms | None = None,
    ) -> None:
        """Nothing is opened yet. Raises SettingsError for settings that contradict each other."""
        keep_freed_memory()
        receive = settings.receive
        if receive.is_synchronous and receive.confirm == "repository":
            raise SettingsError(
                'receive.confirm = "repository" contradicts receive.is_synchronous',
                hint="commits cannot wait for an upload: confirm what is in the spool",
            )
        self.warnings = Warnings()
        self.gaps: list[tuple[Lsn, Lsn]] = []
        self.spool: Spool | None = None
        self.uploader: Uploader | None = None
        self._settings = settings
        self._server = server
        self._environment = environment
        self._terms = terms or Terms()
        self._held: Position | None = None
        self._missing = False
        self._state = "stopped"
        self._problem = ""
        self._server_end = Lsn(0)
        self._slot: SlotState | None = None

    # --- the component ---------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Receive until ``stop``, then store what is flushed and return.

        A server that is away is waited for. Raises what waiting does not mend:
        WalDivergedError, WalGapError, SlotError, SynchronousCommitError,
        IdentityError, WalConflictError, SpaceError, DestinationError, SettingsError,
        PostgresRightsError, PostgresError.
        """
        spool = Spool(spool_directory(self._settings, self._server))
        uploader = Uploader(spool, self._settings, self._server, self._environment)
        self.spool, self.uploader = spool, uploader
        self._held, self._missing = None, False
        try:
            self._recover(spool, uploader)
            try:
                self._keep_on(stop)
            finally:
                self._state = "ending"
                self._settle()
        finally:
            uploader.finish()
            spool.close()
            self._state = "stopped"
        if uploader.failure is not None:
            raise uploader.failure

    def salvage(self) -> None:
        """Store what the spool holds, without any server; raises when that fails."""
        spool = Spool(spool_directory(self._settings, self._server))
        uploader = Uploader(spool, self._settings, self._server, self._environment)
        self.spool, self.uploader = spool, uploader
        try:
            self._recover(spool, uploader)
        finally:
            uploader.finish()
            spool.close()
        if uploader.failure is not None:
            raise uploader.failure
        if uploader.problem:
            raise ReceiveError(
                f"what was received stays in {spool.directory}: {uploader.problem}",
                hint="mend the repository and say it again",
            )

    def facts(self) -> Mapping[str, str | int | float | bool | None]:
        """How far it is; LSNs are text. From any thread."""
        spool, uploader, slot = self.spool, self.uploader, self._slot
        flushed = spool.flushed_to if spool is not None else Lsn(0)
        return {
            "state": self._state,
            "timeline": spool.position.timeline if spool is not None else None,
            "flushed_to": str(flushed),
            "stored_to": str(uploader.stored_to) if uploader is not None else None,
            "server_at": str(self._server_end),
            "lag_bytes": max(0, self._server_end - flushed) if self._server_end else None,
            "segments_stored": uploader.segments_stored if uploader is not None else 0,
            "tails_stored": uploader.tails_stored if uploader is not None else 0,
            "slot": self._settings.receive.slot,
            "slot_wal_status": slot.wal_status if slot is not None else None,
            "slot_retained_bytes": slot.retained_bytes if slot is not None else None,
            "slot_safe_wal_bytes": slot.safe_wal_bytes if slot is not None else None,
            "is_synchronous": self._settings.receive.is_synchronous,
            "problem": self._problem or (uploader.problem if uploader is not None else ""),
            "warnings": "; ".join(self.warnings.all().values()),
        }

    # --- what an earlier run left ------------------------------------------------------

    def _recover(self, spool: Spool, uploader: Uploader) -> None:
        """Make the spool sound, and begin to store it: the server may be gone for good."""
        known = read_origin(spool.directory)
        if known is None:
            if spool.ready():
                raise DestinationError(
                    f"{spool.directory} holds WAL, and no {ORIGIN_FILE} that says whose it is",
                    hint="something else wrote there; move it away",
                )
            return
        origin, segment_bytes = known
        self._held = spool.recover(segment_bytes)
        uploader.start(origin)

    def _settle(self) -> None:
        """Before the end of a run: what was written becomes durable where that is possible."""
        spool = self.spool
        if spool is None:
            return
        spool.flush()
        if spool.position.timeline:
            self._held = Position(spool.position.timeline, max(spool.flushed_to, Lsn(0)))

    # --- sessions ------------------------------------------------------------------------

    def _keep_on(self, stop: threading.Event) -> None:
        wait_seconds = _FIRST_RETRY_SECONDS
        busy_since: float | None = None
        while not stop.is_set():
            began = time.monotonic()
            try:
                self._session(stop)
            except WalMissingError:
                if self._missing:
                    raise
                self._missing = True
                self._settle()
                continue
            except PostgresUnreachableError as error:
                busy_since = None
                self._away(error)
            except SlotError as error:
                if not error.retryable:
                    raise
                busy_since = busy_since or began
                if time.monotonic() - busy_since > _SLOT_BUSY_SECONDS:
                    raise
                self._away(error)
            else:
                return
            self._settle()
            if time.monotonic() - began > _LONGEST_RETRY_SECONDS:
                wait_seconds = _FIRST_RETRY_SECONDS
            stop.wait(wait_seconds)
            wait_seconds = min(2 * wait_seconds, _LONGEST_RETRY_SECONDS)

    def _away(self, error: PgrecallError) -> None:
        if error.message != self._problem:
            _log.warning("not receiving: %s", error.message)
        self._state, self._problem = "waiting", error.message

    def _session(self, stop: threading.Event) -> None:
        server, receive = self._server, self._settings.receive
        self._state = "connecting"
        with (
            ReplicationSession(
                server,
                application_name=receive.application_name,
                environment=self._environment,
            ) as session,
            connect(
                server,
                application_name=f"{receive.application_name} watch",
                purpose="receiving WAL",
                environment=self._environment,
            ) as sql,
        ):
            # A commit that holds a lock may wait for this receiver: it must not wait for the lock.
            sql.rows("SELECT pg_catalog.set_config('lock_timeout', %s, false)", (_LOCK_TIMEOUT,))
            position: Position | None = self._open(session, sql)
            while position is not None and not stop.is_set():
                position = self._follow(session, sql, position, stop)

    def _open(self, session: ReplicationSession, sql: Connection) -> Position:
        """Prove that the server is the right one, and find out where to go on."""
        assert self.spool is not None and self.uploader is not None
        facts = session.identify()
        origin = origin_of(self._server, sql, facts)
        introduce(self.spool, origin, facts.segment_bytes)
        server, file = server_of(session, facts)
        if file is not None:
            self.spool.add(*file)
        self.uploader.start(origin)
        self.uploader.wake()
        slot = ready_slot(sql, session, self._settings.receive.slot, self.warnings)
        self._slot, self._server_end = slot, facts.flushed_to
        landing = Landing(self._settings, self._server, self._environment, origin)
        held = self._held
        if held is None:
            held = archive_frontier(landing.archives(), server)
        if held is not None:
            try:
                check_lineage(held, server)
            except ReceiveError:
                if not (
                    self._terms.accepts_divergence and is_on_other_branch(held, server.history)
                ):
                    raise
                return self._branch_off(held, server, slot)
            if self._missing:
                return self._bridge(landing, server, held, slot)
        return start_of(held, server, slot.restart, facts.segment_bytes)

    def _branch_off(self, held: Position, server: Server, slot: SlotState) -> Position:
        """Go on with a server that left what is held: that stays, as a tail of its timeline."""
        assert self.spool is not None
        size = self.spool.segment_bytes
        _log.warning("going on with timeline %s of %s", server.history.timeline, server.name)
        self.spool.end_timeline()
        start = branch_start(held, server.history, size)
        return start or start_of(None, server, slot.restart, size)

    def _bridge(
        self, landing: Landing, server: Server, held: Position, slot: SlotState
    ) -> Position:
        """The server has removed what comes next: take it from the archive, or name the gap."""
        assert self.spool is not None
        position, gap = bridge(landing.archives(), server, held, slot)
        if gap is not None:
            if not self._terms.accepts_gap:
                raise gap_error(server, gap)
            said = gap_error(server, gap).message
            now = datetime.now(UTC)
            landing.record_gap(Gap(position.timeline, *gap, NOT_RECEIVED, said, now))
            self.gaps.append(gap)
            self.warnings.say("gap", said)
        self.spool.end_timeline()
        self._missing = False
        return position

    # --- streaming -----------------------------------------------------------------------

    def _follow(
        self,
        session: ReplicationSession,
        sql: Connection,
        position: Position,
        stop: threading.Event,
    ) -> Position | None:
        """Stream one timeline to its end; where the next begins, None when it is time to stop."""
        spool, uploader = self.spool, self.uploader
        assert spool is not None and uploader is not None
        following = session.start(self._settings.receive.slot, position.lsn, position.timeline)
        reached = position.lsn
        if following is None:
            spool.begin(position.timeline, position.lsn)
            self._state, self._problem = "streaming", ""
            following = self._stream(session, sql, stop)
            if following is None:
                return None
            reached = spool.flush()
        name, content = session.timeline_history(following.timeline)
        history = parse_history(following.timeline, content)
        if (
            history.end_of(position.timeline) != following.begins_at
            or reached != following.begins_at
        ):
            raise ReceiveError(
                f"timeline {following.timeline} begins at {following.begins_at}; timeline"
                f" {position.timeline} was received up to {reached}, and {name} says that it was"
                f" left at {history.end_of(position.timeline)}",
                hint="the server contradicts itself: look at its history files",
            )
        spool.add(name, content)
        spool.end_timeline()
        uploader.wake()
        _log.info("timeline %s goes on as %s at %s", position.timeline, following.timeline, reached)
        return after_timeline(following.timeline, following.begins_at, spool.segment_bytes)

    def _stream(
        self, session: ReplicationSession, sql: Connection, stop: threading.Event
    ) -> NextTimeline | None:
        spool, uploader, until = self.spool, self.uploader, self._terms.until
        assert spool is not None and uploader is not None
        is_prompt = self._settings.receive.is_synchronous
        limit = _PROMPT_BATCH_BYTES if is_prompt else _BATCH_BYTES
        flushed_at = reported_at = time.monotonic()
        watch_at = 0.0
        while not stop.is_set():
            batch = session.receive(_WAIT_SECONDS, limit)
            whole: list[str] = []
            if batch.pieces:
                self._missing = False
                try:
                    whole = spool.write(batch.pieces)
                except SpoolDiverged as error:
                    raise diverged_bytes(error.segment, error.lsn, session.where) from error
            self._server_end = max(self._server_end, batch.server_end)
            now = time.monotonic()
            is_due = is_prompt or batch.wants_reply or now - flushed_at >= FLUSH_SECONDS
            is_flushed = spool.is_dirty and is_due
            if is_flushed or batch.is_end:
                spool.flush()
                flushed_at = now
            if whole:
                uploader.wake()
            if whole or is_flushed or batch.wants_reply or now - reported_at >= _STATUS_SECONDS:
                self._report(session)
                reported_at = now
            if uploader.failure is not None:
                raise uploader.failure
            if batch.is_end:
                return session.finish_timeline()
            if until is not None and spool.position.lsn >= until:
                break
            if now >= watch_at:
                self._watch(sql, session)
                watch_at = now + _WATCH_SECONDS
            if not is_prompt and 0 < batch.end - batch.start < _FEW_BYTES:
                stop.wait(_GATHER_SECONDS)
        spool.flush()
        self._report(session)
        return None

    def _report(self, session: ReplicationSession) -> None:
        """Tell the server what is durable; nothing while old bytes are still being compared."""
        spool, uploader = self.spool, self.uploader
        assert spool is not None and uploader is not None
        durable = Lsn(0) if spool.is_comparing else spool.flushed_to
        if self._settings.receive.confirm == "repository":
            durable = min(durable, uploader.stored_to)
        session.report(durable)

    def _watch(self, sql: Connection, session: ReplicationSession) -> None:
        """Look at slot and commit levels; what cannot be asked now is asked later."""
        is_synchronous = self._settings.receive.is_synchronous
        try:
            slot = slot_state(sql, self._settings.receive.slot)
            if slot is not None:
                self._slot = slot
                watch_slot(sql, slot, self.warnings)
            watch_commits(sql, session.backend_pid, is_synchronous, self.warnings)
        except PostgresUnreachableError:
            raise
        except PostgresError as error:
            self.warnings.say("watch", f"slot and commits are not watched now: {error.message}")
        else:
            self.warnings.take_back("watch")
