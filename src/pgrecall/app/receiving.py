"""``wal receive`` and ``wal slots``: streaming WAL in the foreground, and what slots cost."""

from __future__ import annotations

import threading

import msgspec

from pgrecall.app.capturing_unasked import Unasked, capture_unasked
from pgrecall.app.context import RunContext
from pgrecall.errors import InterruptedRunError, PgrecallError
from pgrecall.model.findings import Finding, worst
from pgrecall.model.lsn import Lsn
from pgrecall.model.runs import RunFacts
from pgrecall.postgres.connection import Connection, connect
from pgrecall.postgres.slots import (
    LOST,
    UNRESERVED,
    SlotState,
    drop_idle_slot,
    list_slots,
    slot_keep_bytes,
    slot_state,
)
from pgrecall.wal.receive import Receiver, Terms


class ReceiveRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``wal receive``: ``until`` is an LSN at which to end (empty: at a signal).

    ``accept_gap`` and ``accept_divergence`` allow, for this run, to go on behind a
    gap that is recorded, and on another branch than what was received.
    """

    salvage: bool = False
    until: str = ""
    accept_gap: bool = False
    accept_divergence: bool = False


class ReceiveResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a run received. ``flushed_to``: durable here; ``stored_to``: in the repositories.

    ``gaps`` were accepted and recorded: first byte and the byte behind the last.
    """

    timeline: int | None
    flushed_to: str
    stored_to: str
    segments_stored: int
    tails_stored: int
    gaps: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


class SlotsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``wal slots``: ``drop`` names a slot to drop (empty: only list)."""

    drop: str = ""


class SlotsPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What dropping a slot gives up."""

    drop: SlotState
    action: str


class SlotsResult(msgspec.Struct, frozen=True, kw_only=True):
    """Every slot of the server after the act. ``keep_limit_bytes``: max_slot_wal_keep_size."""

    slots: tuple[SlotState, ...]
    keep_limit_bytes: int | None = None
    dropped: str = ""
    findings: tuple[Finding, ...] = ()
    capture_id: str = ""

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        return RunFacts(outcome=worst(list(self.findings)), capture_id=self.capture_id)


def wal_receive(context: RunContext, request: ReceiveRequest) -> ReceiveResult:
    """Receive until a signal, or store what an earlier run left (``salvage``).

    A signal is the ordinary end: what is flushed is stored, the tail included.
    Raises what Receiver.run and Receiver.salvage raise.
    """
    terms = Terms(
        accepts_gap=request.accept_gap,
        accepts_divergence=request.accept_divergence,
        until=Lsn.parse(request.until) if request.until else None,
    )
    receiver = Receiver(context.settings, context.server, context.environment, terms)
    if request.salvage:
        receiver.salvage()
    else:
        _run_until_signal(receiver)
    return _result(receiver)


def wal_slots(context: RunContext, request: SlotsRequest) -> SlotsResult:
    """List the slots; with ``drop``, drop one that nobody uses, after a confirmation."""
    with connect(
        context.server,
        application_name="pgrecall slots",
        purpose="looking at replication slots",
        environment=context.environment,
    ) as connection:
        dropped, before = "", Unasked()
        if request.drop:
            dropped, before = _drop(context, connection, request.drop)
        slots = tuple(list_slots(connection))
        keep = slot_keep_bytes(connection)
    return SlotsResult(
        slots=slots,
        keep_limit_bytes=keep,
        dropped=dropped,
        findings=(*before.findings, *_slot_findings(slots, keep)),
        capture_id=before.capture_id,
    )


def _drop(context: RunContext, connection: Connection, name: str) -> tuple[str, Unasked]:
    """The name of what was dropped, and the capture of before, which can make it anew."""
    found = slot_state(connection, name)
    if found is None or found.is_active:
        drop_idle_slot(connection, name)  # says why not
        return name, Unasked()
    plan = SlotsPlan(
        drop=found,
        action=f"the server may remove the WAL from {found.restart_lsn or 'nowhere'} on; a"
        " standby or receiver that needs it cannot go on",
    )
    if not context.approve(plan, question=f"Shall the replication slot {name!r} be dropped?"):
        return "", Unasked()
    before = capture_unasked(context, connection=connection)
    drop_idle_slot(connection, name)
    return name, before


def _slot_findings(slots: tuple[SlotState, ...], keep: int | None) -> tuple[Finding, ...]:
    findings = []
    for slot in slots:
        if slot.wal_status == LOST or slot.invalidation:
            findings.append(
                Finding(
                    "fail",
                    "slot-lost",
                    f"it has lost the WAL that it was to keep ({slot.invalidation or LOST})",
                    subject=slot.name,
                    hint=f"pgrecall wal slots --drop {slot.name}, and make what used it anew",
                )
            )
        elif slot.wal_status == UNRESERVED:
            findings.append(
                Finding(
                    "warn",
                    "slot-unreserved",
                    "it is about to lose WAL: it keeps more than max_slot_wal_keep_size",
                    subject=slot.name,
                    hint="start what uses it, or drop it",
                )
            )
        elif not slot.is_active and keep is None and slot.restart_lsn:
            findings.append(
                Finding(
                    "warn",
                    "slot-idle",
                    f"nobody uses it, and it keeps {slot.retained_bytes} bytes of WAL, without"
                    " a limit",
                    subject=slot.name,
                    hint="start what uses it, drop it, or set max_slot_wal_keep_size",
                )
            )
    return tuple(findings)


def _run_until_signal(receiver: Receiver) -> None:
    stop = threading.Event()
    failures: list[PgrecallError] = []
    others: list[Exception] = []

    def work() -> None:
        try:
            receiver.run(stop)
        except PgrecallError as error:
            failures.append(error)
        except Exception as error:  # noqa: BLE001 (raised again in the main thread)
            others.append(error)

    thread = threading.Thread(target=work, name="receiver")
    thread.start()
    try:
        thread.join()
    except InterruptedRunError:
        stop.set()
        thread.join()
    for error in (*others, *failures):
        raise error


def _result(receiver: Receiver) -> ReceiveResult:
    facts = receiver.facts()
    uploader = receiver.uploader
    findings = [Finding("warn", code, message) for code, message in receiver.warnings.all().items()]
    if uploader is not None:
        missed = [uploader.problem] if uploader.problem else []
        findings += [Finding("warn", "not-stored", said) for said in missed + uploader.warnings]
        findings += [Finding("warn", "tail-kept", said) for said in uploader.kept_tails]
    timeline = facts["timeline"]
    return ReceiveResult(
        timeline=timeline if isinstance(timeline, int) and timeline else None,
        flushed_to=str(facts["flushed_to"]),
        stored_to=str(facts["stored_to"]),
        segments_stored=uploader.segments_stored if uploader is not None else 0,
        tails_stored=uploader.tails_stored if uploader is not None else 0,
        gaps=tuple(f"{start}-{end}" for start, end in receiver.gaps),
        findings=tuple(findings),
    )
