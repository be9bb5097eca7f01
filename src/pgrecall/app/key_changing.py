"""``key rotate``, ``key rewrap`` and ``key export``."""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from pgrecall.app.context import RunContext
from pgrecall.app.requests import KeyExportRequest, KeyRewrapRequest, KeyRotateRequest
from pgrecall.errors import NotEncryptedError, SettingsError, UsageError
from pgrecall.model.findings import Finding
from pgrecall.model.runs import RunFacts
from pgrecall.repository.envelopes import remove_envelopes
from pgrecall.repository.identity import read_repository
from pgrecall.repository.key_changes import opens, rewrap, rotate
from pgrecall.repository.keyring import RepositoryKeys, repository_keys
from pgrecall.repository.wrapping import Wrapping, open_wrapping
from pgrecall.repository.wrapping_exported import exported
from pgrecall.settings import RepositorySettings
from pgrecall.settings.declare import Value
from pgrecall.store.opening import open_store
from pgrecall.system.clock import SystemClock
from pgrecall.system.durable import write_new

_NO_ROTATION_HINT = (
    "objects stay encrypted with the key that they were stored with, which stays; "
    "`pgrecall key export` again: an older export does not have the new key"
)


class RotatedKey(msgspec.Struct, frozen=True, kw_only=True):
    """One repository: the key of new objects until now, and (empty before) from now on."""

    repository: str
    before: str
    key_id: str = ""


class RotatePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``key rotate`` is going to do."""

    repositories: tuple[RotatedKey, ...]
    reasons: tuple[str, ...] = (_NO_ROTATION_HINT,)


class RotateResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``key rotate`` did; ``rotated`` is empty when nothing was changed."""

    plan: RotatePlan
    rotated: tuple[RotatedKey, ...] = ()
    next: str = ""


class RewrapStep(msgspec.Struct, frozen=True, kw_only=True):
    """One key: whether an envelope is added, and the numbers of those that are removed."""

    key_id: str
    adds: bool
    removes: tuple[int, ...] = ()


class RewrapPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``key rewrap`` is going to do: the keys are opened by ``opened_by``."""

    repository: str
    opened_by: str
    wrapped_by: str
    keys: tuple[RewrapStep, ...]


class RewrapResult(msgspec.Struct, frozen=True, kw_only=True):
    """How many envelopes were added and removed; what is left to do."""

    plan: RewrapPlan
    added: int = 0
    removed: int = 0
    findings: tuple[Finding, ...] = ()

    def run_facts(self) -> RunFacts:
        """What the journal keeps of it."""
        return RunFacts(outcome="warn" if self.findings else "ok")


class ExportResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``key export`` wrote into ``path``; ``document`` only when it was to be printed."""

    repository: str
    repository_id: str
    keys: tuple[str, ...]
    path: str = ""
    document: str = ""


def rotate_keys(context: RunContext, request: KeyRotateRequest) -> RotateResult:
    """Add a data key to the chosen repository, or to all encrypted ones of the server.

    Durable when it returns. Raises KeyMissingError, KeyRefusedError, RepositoryError,
    StoreError, SettingsError.
    """
    # Where none is encrypted by its settings, the first one says what is wrong.
    chosen = [one for one in context.repositories if one.encryption] or context.repositories
    opened = {settings.name: _keys(context, settings) for settings in chosen}
    plan = RotatePlan(
        repositories=tuple(
            RotatedKey(repository=name, before=keys.current().key_id)
            for name, keys in opened.items()
        )
    )
    is_approved = context.approve(plan)
    if request.dry_run or not is_approved:
        return RotateResult(plan=plan)
    now = SystemClock().now()
    rotated = tuple(
        msgspec.structs.replace(one, key_id=rotate(opened[one.repository], now).key_id)
        for one in plan.repositories
    )
    return RotateResult(
        plan=plan,
        rotated=rotated,
        next="running agents use it within a minute; `pgrecall key export` again, for the safe",
    )


def rewrap_keys(context: RunContext, request: KeyRewrapRequest) -> RewrapResult:
    """Wrap every key for the configured secret; then, if asked, remove what older secrets open.

    No data is rewritten. An interrupted run is carried on by the next one. Raises
    KeyMissingError, KeyRefusedError (nothing is written), StoreError, SettingsError.
    """
    settings = _one_repository(context)
    _require_encrypted(context, settings)
    wrapping = open_wrapping(settings, context.environment)
    opener = settings.replace(**{**_NO_SECRETS, **request.old}) if request.old else settings
    keys = _keys(context, opener)
    steps = [
        _step(keys, key_id, numbers, wrapping, request)
        for key_id, numbers in keys.numbers().items()
        if keys.find(key_id) is not None
    ]
    plan = RewrapPlan(
        repository=settings.name,
        opened_by=keys.wrapping.method,
        wrapped_by=wrapping.method,
        keys=tuple(steps),
    )
    removes = sum(len(step.removes) for step in steps)
    question = (
        f"Remove {removes} envelopes, so that the secrets that open them do so no more?"
        if removes and not request.dry_run
        else ""
    )
    is_approved = context.approve(plan, question=question)
    if request.dry_run or not is_approved:
        return RewrapResult(plan=plan)
    now = SystemClock().now()
    for step in steps:
        if step.adds:
            rewrap(keys, step.key_id, wrapping, now)
    for step in steps:
        remove_envelopes(keys.store, step.key_id, step.removes)
    return RewrapResult(
        plan=plan,
        added=sum(step.adds for step in steps),
        removed=removes,
        findings=tuple(_left(keys, settings)),
    )


def export_keys(context: RunContext, request: KeyExportRequest) -> ExportResult:
    """All keys of a repository, unwrapped: into a new file (mode 0600, durable), or returned.

    Raises KeyMissingError, KeyRefusedError, SettingsError (the file cannot be made).
    """
    settings = _one_repository(context)
    keys = _keys(context, settings)
    found = [key for key in map(keys.find, keys.numbers()) if key is not None]
    document = exported(keys.repository_id(), found, SystemClock().now())
    path = os.path.abspath(request.path) if request.path else ""
    if path:
        try:
            write_new(path, [document])
        except OSError as error:
            raise SettingsError(
                f"cannot write {path}: {error.strerror}",
                hint="name a file that does not exist yet, in a directory that is there",
            ) from error
    return ExportResult(
        repository=settings.name,
        repository_id=keys.repository_id(),
        keys=tuple(key.key_id for key in found),
        path=path,
        document="" if path else document.decode("ascii"),
    )


_NO_SECRETS: Mapping[str, Value] = {
    "encryption": "", "passphrase": "", "age_identity": "", "unwrap_command": (),
    "exported_keys": "",
}  # fmt: skip


def _one_repository(context: RunContext) -> RepositorySettings:
    candidates = context.repositories
    if len(candidates) > 1:
        candidates = [settings for settings in candidates if settings.encryption]
    if len(candidates) != 1:
        raise UsageError(
            f"{len(candidates)} repositories are encrypted by their settings: which one?",
            hint="name it with --repository",
        )
    return candidates[0]


def _keys(context: RunContext, settings: RepositorySettings) -> RepositoryKeys:
    _require_encrypted(context, settings)
    return repository_keys(settings, context.environment, open_store(settings, context.environment))


def _require_encrypted(context: RunContext, settings: RepositorySettings) -> None:
    plain = open_store(settings, context.environment)
    if not settings.encryption and read_repository(plain).root is None:
        raise NotEncryptedError(
            f"{plain.name} is not encrypted and has no keys",
            hint="a repository is encrypted from its beginning or never: make a new one with "
            "`pgrecall init --encryption`, in another place",
        )


def _step(
    keys: RepositoryKeys,
    key_id: str,
    numbers: list[int],
    wrapping: Wrapping,
    request: KeyRewrapRequest,
) -> RewrapStep:
    """What a key needs: nothing is added where the newest envelope opens with the secret.

    Unless nothing else is asked for: then what is wrapped has changed (recipients).
    """
    newest = next(iter(keys.envelopes(key_id)), None)
    is_done = newest is not None and opens(wrapping, newest)
    is_asked = not request.old and not request.revoke_old
    adds = is_asked or not is_done
    kept = {newest.number} if newest is not None and not adds else set()
    removes = tuple(number for number in numbers if number not in kept)
    return RewrapStep(key_id=key_id, adds=adds, removes=removes if request.revoke_old else ())


def _left(keys: RepositoryKeys, settings: RepositorySettings) -> list[Finding]:
    older = sum(len(numbers) - 1 for numbers in keys.numbers().values() if numbers)
    if not older:
        return []
    return [
        Finding(
            severity="warn",
            code="key-envelope-old",
            subject=settings.name,
            message=f"{older} older envelopes are there still: whoever has the secret of then can "
            "open the repository",
            hint="when all hosts have the new secret: `pgrecall key rewrap --revoke-old`",
        )
    ]
