"""``key check``: which keys there are, and whether the configured secret opens them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.errors import (
    CorruptObjectError,
    KeyRefusedError,
    ObjectMissingError,
    PgrecallError,
    RepositoryError,
)
from pgrecall.model.findings import Finding, Severity, worst
from pgrecall.model.ids import created_at
from pgrecall.model.runs import RunFacts
from pgrecall.repository.envelopes import Envelope, read_envelope
from pgrecall.repository.identity import read_repository
from pgrecall.repository.key_changes import opens
from pgrecall.repository.keyring import RepositoryKeys, repository_keys
from pgrecall.settings import RepositorySettings
from pgrecall.store.opening import open_store
from pgrecall.system.clock import SystemClock

Opens = Literal["yes", "no", "damaged", "ignored"]


class EnvelopeLine(msgspec.Struct, frozen=True, kw_only=True):
    """One envelope of a data key: the key, wrapped by one secret with ``method``.

    ``opens``: whether the configured secret opens it. ``ignored``: nobody who has the
    repository's keys has made it.
    """

    repository: str
    key_id: str
    created_at: datetime
    is_current: bool
    envelope: int
    method: str
    opens: Opens


class KeyCheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``key check`` found; ``current`` maps repositories to the key of new objects."""

    checked_at: datetime
    current: dict[str, str]
    envelopes: tuple[EnvelopeLine, ...]
    result: Severity
    findings: tuple[Finding, ...]

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        return RunFacts(outcome=self.result)


def check_keys(context: RunContext) -> KeyCheckResult:
    """Open every key of the chosen repository, or of all of the server's; changes nothing.

    What does not work is a finding. Raises SettingsError.
    """
    current: dict[str, str] = {}
    lines: list[EnvelopeLine] = []
    findings: list[Finding] = []
    for settings in context.repositories:
        try:
            check = _Check(context, settings)
            check.run()
        except PgrecallError as error:
            findings.append(_failed(settings, error))
            continue
        lines += check.lines
        findings += check.findings
        if check.current:
            current[settings.name] = check.current
    return KeyCheckResult(
        checked_at=SystemClock().now(),
        current=current,
        envelopes=tuple(lines),
        result=worst(findings),
        findings=tuple(findings),
    )


class _Check:
    """The keys of one repository."""

    def __init__(self, context: RunContext, settings: RepositorySettings) -> None:
        self._context = context
        self._settings = settings
        self.current = ""
        self.lines: list[EnvelopeLine] = []
        self.findings: list[Finding] = []

    def run(self) -> None:
        """Fill ``lines`` and ``findings``; raises PgrecallError when nothing can be told."""
        name = self._settings.name
        plain = open_store(self._settings, self._context.environment)
        identity = read_repository(plain)
        if identity.root is None and not self._settings.encryption:
            self._find("ok", "encryption", "the repository is not encrypted")
            return
        keys = repository_keys(self._settings, self._context.environment, plain)
        listed = keys.numbers()
        keys.root()
        self.current = keys.current_id()
        for key_id, numbers in listed.items():
            self._key(keys, key_id, numbers)
        self._find(
            "ok",
            "encryption",
            f"{name} is encrypted ({identity.suite}) with {len(listed)} keys; new objects get "
            f"{self.current}",
        )

    def _key(self, keys: RepositoryKeys, key_id: str, numbers: list[int]) -> None:
        lines = [self._envelope(keys, key_id, number) for number in reversed(numbers)]
        self.lines += lines
        opened = [line.envelope for line in lines if line.opens == "yes"]
        strange = [line.envelope for line in lines if line.opens == "ignored"]
        if strange:
            self._find(
                "warn",
                "key-strange",
                f"envelope {_list(strange)} of key {key_id} was made by somebody who does not "
                "have the keys of the repository; it is never used",
                "left by an init that was interrupted, or planted: see who can write there",
            )
        if not numbers:
            self._find(
                "warn",
                "key-envelope-missing",
                f"the key {key_id} is known from the export only",
                "configure a secret, and run `pgrecall key rewrap --old-exported-keys FILE`",
            )
        elif not opened and len(strange) < len(lines):
            self._find(
                "fail",
                "key-refused",
                f"the configured secret does not open the key {key_id}: what is encrypted with it "
                "cannot be read here",
                "configure the secret of that key, or run `pgrecall key rewrap`, saying the old",
            )
        elif opened and opened[0] != max(numbers) and not strange:
            self._find(
                "warn",
                "key-secret-old",
                f"the configured secret opens only envelope {opened[0]} of key {key_id}, not the "
                "newest: the secret was changed",
                "configure the new secret on this host",
            )
        elif len(lines) - len(strange) > 1:
            older = [line.envelope for line in lines[1:]]
            self._find(
                "warn",
                "key-envelope-old",
                f"envelope {_list(older)} of key {key_id} is there still: whoever has the secret "
                "of then can open the repository",
                "when all hosts have the new secret: `pgrecall key rewrap --revoke-old`",
            )

    def _envelope(self, keys: RepositoryKeys, key_id: str, number: int) -> EnvelopeLine:
        method = ""
        does_open: Opens = "damaged"
        try:
            envelope = read_envelope(keys.store, key_id, number)
            method, does_open = envelope.method, self._opens(keys, envelope)
        except (CorruptObjectError, ObjectMissingError, RepositoryError) as error:
            if isinstance(error, KeyRefusedError):
                raise
            self._find("fail", "key-damaged", error.message, _DAMAGED)
        return EnvelopeLine(
            repository=self._settings.name,
            key_id=key_id,
            created_at=created_at(key_id),
            is_current=key_id == self.current,
            envelope=number,
            method=method,
            opens=does_open,
        )

    def _opens(self, keys: RepositoryKeys, envelope: Envelope) -> Opens:
        if not keys.counts(envelope):
            return "ignored"
        return "yes" if opens(keys.wrapping, envelope) else "no"

    def _find(self, severity: Severity, code: str, message: str, hint: str = "") -> None:
        self.findings.append(
            Finding(
                severity=severity,
                code=code,
                subject=self._settings.name,
                message=message,
                hint=hint,
            )
        )


def _failed(settings: RepositorySettings, error: PgrecallError) -> Finding:
    return Finding(
        severity="fail" if settings.role == "required" else "warn",
        code=error.code,
        subject=settings.name,
        message=error.message,
        hint=error.hint,
    )


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


_DAMAGED = "bring the envelope back from a copy of the repository, or run `pgrecall key rewrap`"
