"""Holds a restored server to the capture of its set; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from pgrecall.model.captures import (
    CapturedDatabase,
    CapturedSubscription,
    CapturedTablespace,
    CaptureFacts,
)
from pgrecall.model.findings import Finding, Severity

_MOST_NAMED = 10
# Where a server's files are depends on where it was restored.
_PLACES = frozenset({"config_file", "data_directory", "hba_file", "ident_file"})


class SetCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One part of the comparison: so many things the capture has, so many came as they were.

    ``differences``: the first of those that did not.
    """

    what: str
    wanted: int
    equal: int
    result: Severity
    differences: tuple[str, ...] = ()


class Expectation(msgspec.Struct, frozen=True, kw_only=True):
    """What a restore could bring back. ``databases``: those of the dump; None: all there are.

    ``other_settings``: names of those that the restore itself has set. ``tablespaces``: new
    directories by old ones.
    """

    databases: frozenset[str] | None = None
    other_settings: frozenset[str] = frozenset()
    tablespaces: Mapping[str, str] = {}


def compare(then: CaptureFacts, now: CaptureFacts, expected: Expectation) -> tuple[SetCheck, ...]:
    """Every part of the capture, then and now."""
    is_logical = expected.databases is not None
    chosen = expected.databases

    def is_chosen(name: str) -> bool:
        return chosen is None or not name or name in chosen

    settings = _settings(then, expected.other_settings)
    # A logical restore sets no configuration: that settings differ is to be known, no failure.
    return (
        _check(
            "databases",
            _by_name(_databases(then.databases, is_chosen)),
            _by_name(_databases(now.databases, is_chosen)),
        ),
        _check("roles", _by_name(then.roles), _by_name(now.roles)),
        _check(
            "tablespaces",
            {one.name: _moved(one, expected.tablespaces) for one in then.tablespaces},
            {one.name: _moved(one, {}) for one in now.tablespaces},
        ),
        _check(
            "extensions",
            {one.name: one for one in then.extensions if is_chosen(one.database)},
            {one.name: one for one in now.extensions if is_chosen(one.database)},
        ),
        _check(
            "publications",
            {one.name: one for one in then.publications if is_chosen(one.database)},
            {one.name: one for one in now.publications if is_chosen(one.database)},
        ),
        _check(
            "subscriptions",
            _subscriptions(then.subscriptions, is_chosen, is_logical=is_logical),
            _subscriptions(now.subscriptions, is_chosen, is_logical=is_logical),
        ),
        _check(
            "settings of roles and databases",
            {
                f"{one.database}/{one.role}/{one.name}": one.value
                for one in then.scoped_settings
                if is_chosen(one.database)
            },
            {
                f"{one.database}/{one.role}/{one.name}": one.value
                for one in now.scoped_settings
                if is_chosen(one.database)
            },
        ),
        _check("data checksums", {"": then.data_checksums}, {"": now.data_checksums}),
        # What the restore has set besides is no loss.
        _check(
            "settings",
            settings,
            {name: one for name, one in _settings(now, frozenset()).items() if name in settings},
            gravity="warn",
        ),
    )


def findings_of(checks: Sequence[SetCheck]) -> tuple[Finding, ...]:
    """A finding for each part that is not as it was."""
    return tuple(
        Finding(
            severity=one.result,
            code="set-differs",
            subject=one.what,
            message=f"{one.equal} of {one.wanted} came back as they were: "
            + "; ".join(one.differences),
            hint="pgrecall captures show has what they were",
        )
        for one in checks
        if one.result != "ok"
    )


def _check(
    what: str,
    then: Mapping[str, object],
    now: Mapping[str, object],
    *,
    gravity: Severity = "fail",
) -> SetCheck:
    differences = [f"{name} is missing" for name in then if name not in now]
    differences += [f"{name} was not there" for name in now if name not in then]
    differences += [
        f"{name}{_told(then[name], now[name])}"
        for name in then
        if name in now and then[name] != now[name]
    ]
    return SetCheck(
        what=what,
        wanted=len(then),
        equal=sum(name in now and now[name] == one for name, one in then.items()),
        result=gravity if differences else "ok",
        differences=tuple(differences[:_MOST_NAMED]),
    )


def _told(then: object, now: object) -> str:
    """What is different, by field; passwords and connections are never told."""
    if isinstance(then, msgspec.Struct) and isinstance(now, msgspec.Struct):
        names = [
            name
            for name in then.__struct_fields__
            if getattr(then, name) != getattr(now, name, None)
        ]
        return " has another " + ", ".join(name.replace("_", " ") for name in names)
    return " has another value"


class _Named(Protocol):
    @property
    def name(self) -> str: ...


def _by_name(things: Iterable[_Named]) -> dict[str, object]:
    return {one.name: one for one in things}


def _databases(
    databases: Iterable[CapturedDatabase], is_chosen: Callable[[str], bool]
) -> list[CapturedDatabase]:
    return [one for one in databases if is_chosen(one.name)]


def _moved(space: CapturedTablespace, places: Mapping[str, str]) -> tuple[str, str]:
    return space.owner, places.get(space.location, space.location)


def _subscriptions(
    subscriptions: Iterable[CapturedSubscription],
    is_chosen: Callable[[str], bool],
    *,
    is_logical: bool,
) -> dict[str, object]:
    """pg_dump's do not begin by themselves, so that two servers do not follow one."""
    return {
        one.name: msgspec.structs.replace(one, is_enabled=False, slot="") if is_logical else one
        for one in subscriptions
        if is_chosen(one.database)
    }


def _settings(facts: CaptureFacts, others: frozenset[str]) -> dict[str, object]:
    return {one.name: one.value for one in facts.settings if one.name not in others | _PLACES}
