"""What can be done about each damaged object, and where its good bytes are; pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from pgrecall.errors import RepositoryError
from pgrecall.model.findings import Finding
from pgrecall.repository import layout

Kind = Literal[
    "pack", "manifest", "digests", "completion", "wal", "record", "spare", "mark", "origin", "none"
]
Action = Literal["replace", "put", "remove", "none"]

# Objects that only save time: what they say is made anew.
_SPARE = ("wal-rollups/", "verified/")
_WAL_CODES = frozenset({"wal-damaged", "wal-missing", "wal-gap", "history-missing"})
# Every byte is what was stored: it was read like this from the server, or written wrong.
NO_OBJECT = frozenset({"file-damaged", "page-damaged"})


class ObjectToHeal(msgspec.Struct, frozen=True, kw_only=True):
    """One damaged object of one repository.

    ``source``: the repository that it is healed from; ``action`` none: ``why`` says what is
    in the way. ``backups``: those that need it.
    """

    repository: str
    key: str
    code: str
    message: str
    action: Action
    source: str = ""
    why: str = ""
    backups: tuple[str, ...] = ()


class RepairPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is damaged in each repository, and what will be done about it."""

    server: str
    healable: int
    hopeless: int
    objects: tuple[ObjectToHeal, ...]
    findings: tuple[Finding, ...] = ()


def kind_of(server: str, key: str, code: str) -> Kind:
    """What a damaged object is, which decides how it is healed."""
    if not key or code in NO_OBJECT:
        return "none"
    if code in _WAL_CODES or "/tails/" in key:
        return "wal"
    prefix = layout.server_prefix(server)
    if key.startswith(layout.ORIGINS_PREFIX):
        return "origin"
    if key.startswith(layout.damage_prefix(server)):
        return "mark"
    if key.startswith(tuple(prefix + name for name in _SPARE)):
        return "spare"
    if not key.startswith((layout.backups_prefix(server), layout.dumps_prefix(server))):
        return "record"
    try:
        kind = layout.parse_backup_key(key).kind
    except RepositoryError:
        return "none"
    if kind == layout.PACK:
        return "pack"
    if kind == layout.DIGESTS:
        return "digests"
    return "completion" if kind == layout.COMPLETE else "manifest"


def make_plan(
    server: str, objects: tuple[ObjectToHeal, ...], findings: tuple[Finding, ...]
) -> RepairPlan:
    """The plan, counted."""
    hopeless = sum(one.action == "none" for one in objects)
    return RepairPlan(
        server=server,
        healable=len(objects) - hopeless,
        hopeless=hopeless,
        objects=objects,
        findings=findings,
    )


def replaces(plan: RepairPlan) -> bool:
    """Whether anything that lies there is taken away."""
    return any(one.action in ("replace", "remove") for one in plan.objects)
