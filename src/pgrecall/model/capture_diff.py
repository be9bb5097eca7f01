"""What differs between two captures, kind by kind; secrets are never told."""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from pgrecall.model.captures import CapturedFile, CaptureFacts
from pgrecall.model.withholding import is_secret, without_secrets

UNTOLD = "(not shown)"

HBA = "hba"
IDENT = "ident"
FILES = "files"

#: Kinds that are made of records: the fields that name one, and those that are not told.
_RECORDS: dict[str, tuple[tuple[str, ...], frozenset[str]]] = {
    "settings": (("name",), frozenset()),
    "scoped_settings": (("database", "role", "name"), frozenset()),
    "databases": (("name",), frozenset()),
    "extensions": (("database", "name"), frozenset()),
    "roles": (("name",), frozenset({"password"})),
    "tablespaces": (("name",), frozenset()),
    "slots": (("name",), frozenset()),
    "publications": (("database", "name"), frozenset()),
    "subscriptions": (("database", "name"), frozenset({"connection"})),
}
_DERIVED = frozenset({"sql", "is_withheld"})
_USUAL_NAMES = {"pg_hba.conf": HBA, "pg_ident.conf": IDENT}
_FILE_SETTINGS = {"hba_file": HBA, "ident_file": IDENT}


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is in the second capture only, in the first only, or in both, otherwise.

    ``what``: which property of ``name``, empty for the thing itself. Of files, lines are
    added and removed: ``name`` is the path, ``before`` or ``after`` the line.
    """

    kind: str
    name: str
    change: Literal["added", "removed", "changed"]
    what: str = ""
    before: str = ""
    after: str = ""


class CaptureDifference(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that differs; ``unknown``: what could not be compared, and why, in words."""

    differences: tuple[Difference, ...] = ()
    unknown: tuple[str, ...] = ()


def difference(before: CaptureFacts, after: CaptureFacts) -> CaptureDifference:
    """Compare. What one of the two could not see, or had to leave out, is not a difference."""
    found = list(_server(before, after))
    unknown: list[str] = []
    found += _files(before, after, unknown)
    for kind in _RECORDS:
        found += _records(kind, before, after, unknown)
    return CaptureDifference(differences=tuple(found), unknown=tuple(unknown))


def kinds_of_files(facts: CaptureFacts) -> dict[str, str]:
    """The kind of each captured file by its path: hba, ident, or files."""
    named = {
        one.value: _FILE_SETTINGS[one.name]
        for one in facts.settings
        if one.name in _FILE_SETTINGS and one.value
    }
    return {file.path: named.get(file.path) or _usual(file.path, named) for file in facts.files}


def rules_of(text: str) -> list[str]:
    """The lines of pg_hba.conf or pg_ident.conf that say something, blanks made one."""
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return [line for line in lines if line and not line.startswith("#")]


def _usual(path: str, named: Mapping[str, str]) -> str:
    """The kind by the usual name, where no setting says that another file is in use."""
    kind = _USUAL_NAMES.get(posixpath.basename(path), FILES)
    return FILES if kind in named.values() else kind


def _server(before: CaptureFacts, after: CaptureFacts) -> Iterable[Difference]:
    if before.version != after.version:
        yield Difference(
            kind="server",
            name="version",
            change="changed",
            before=before.version,
            after=after.version,
        )
    if before.data_checksums != after.data_checksums:
        yield Difference(
            kind="server",
            name="data checksums",
            change="changed",
            before=_shown(before.data_checksums),
            after=_shown(after.data_checksums),
        )


# --- files -------------------------------------------------------------------------------


def _files(before: CaptureFacts, after: CaptureFacts, unknown: list[str]) -> Iterable[Difference]:
    problems = [
        one
        for facts in (before, after)
        for one in facts.findings
        if one.code == "capture-rights" and one.subject == "files"
    ]
    if problems:
        unknown.append(f"files: {problems[0].message}")
        return
    unread = {
        one.subject
        for facts in (before, after)
        for one in facts.findings
        if one.code == "capture-file"
    }
    unknown += [f"{path}: it could not be read" for path in sorted(unread)]
    old, new = _by_path(before.files), _by_path(after.files)
    kinds = kinds_of_files(before) | kinds_of_files(after)
    for path in sorted((old.keys() | new.keys()) - unread):
        yield from _file(kinds[path], path, old.get(path), new.get(path))


def _by_path(files: Iterable[CapturedFile]) -> dict[str, str]:
    return {file.path: file.content for file in files}


def _file(kind: str, path: str, old: str | None, new: str | None) -> Iterable[Difference]:
    if old == new:
        return
    if old is None or new is None:
        yield Difference(kind=kind, name=path, change="added" if old is None else "removed")
        return
    shown = [without_secrets(text)[0] for text in (old, new)]
    is_rules = kind in {HBA, IDENT}
    lines = [rules_of(text) if is_rules else text.split("\n") for text in shown]
    found = list(_lines(kind, path, *lines))
    if found:
        yield from found
        return
    hidden = "comments or blanks" if is_rules and shown[0] != shown[1] else "what may hold secrets"
    yield Difference(
        kind=kind, name=path, change="changed", what=hidden, before=UNTOLD, after=UNTOLD
    )


def _lines(kind: str, path: str, old: Sequence[str], new: Sequence[str]) -> Iterable[Difference]:
    matcher = difflib.SequenceMatcher(a=old, b=new, autojunk=False)
    for tag, start, end, new_start, new_end in matcher.get_opcodes():
        if tag == "equal":
            continue
        for line in old[start:end]:
            if line.strip():
                yield Difference(kind=kind, name=path, change="removed", before=line)
        for line in new[new_start:new_end]:
            if line.strip():
                yield Difference(kind=kind, name=path, change="added", after=line)


# --- records -----------------------------------------------------------------------------


def _records(
    kind: str, before: CaptureFacts, after: CaptureFacts, unknown: list[str]
) -> Iterable[Difference]:
    naming, secret = _RECORDS[kind]
    left_out = {
        one.message
        for facts in (before, after)
        for one in facts.findings
        if one.subject == kind and secret
    }
    unknown += [f"{kind}: {message}" for message in sorted(left_out)]
    ignored = _DERIVED | (secret if left_out else frozenset())
    old = {_identity(one, naming): one for one in getattr(before, kind)}
    new = {_identity(one, naming): one for one in getattr(after, kind)}
    for identity in sorted(old.keys() | new.keys()):
        was, now = old.get(identity), new.get(identity)
        name = " ".join(part for part in identity if part)
        if was is None or now is None:
            told = _told(kind, was or now, naming, secret)
            yield Difference(
                kind=kind,
                name=name,
                change="added" if was is None else "removed",
                before="" if was is None else told,
                after=told if was is None else "",
            )
            continue
        yield from _properties(kind, name, was, now, ignored)


def _properties(
    kind: str, name: str, was: msgspec.Struct, now: msgspec.Struct, ignored: frozenset[str]
) -> Iterable[Difference]:
    secret = _RECORDS[kind][1]
    is_withheld = getattr(was, "is_withheld", False) or getattr(now, "is_withheld", False)
    for field in was.__struct_fields__:
        if field in ignored or (is_withheld and field == "value"):
            continue
        old, new = getattr(was, field), getattr(now, field)
        if old == new:
            continue
        is_untold = field in secret or _is_secret(kind, was) or _is_secret(kind, now)
        yield Difference(
            kind=kind,
            name=name,
            change="changed",
            what="" if field == "value" else field.removeprefix("is_").replace("_", " "),
            before=UNTOLD if is_untold else _shown(old),
            after=UNTOLD if is_untold else _shown(new),
        )


def _identity(record: msgspec.Struct, naming: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(getattr(record, field)) for field in naming)


def _told(
    kind: str, record: msgspec.Struct | None, naming: tuple[str, ...], secret: frozenset[str]
) -> str:
    """A record in words: what is not as usual in it, without its name."""
    assert record is not None
    if hasattr(record, "value"):
        return UNTOLD if _is_secret(kind, record) else str(record.value)
    defaults = dict(
        zip(
            reversed(record.__struct_fields__),
            reversed(record.__struct_defaults__),
            strict=False,
        )
    )
    parts = []
    for field in record.__struct_fields__:
        value = getattr(record, field)
        if field in naming or field in _DERIVED or value == defaults.get(field, ""):
            continue
        shown = UNTOLD if field in secret else _shown(value)
        parts.append(f"{field.removeprefix('is_').replace('_', ' ')} {shown}")
    return ", ".join(parts)


def _is_secret(kind: str, record: msgspec.Struct) -> bool:
    if not kind.endswith("settings"):
        return False
    return is_secret(getattr(record, "name", ""), getattr(record, "value", ""))


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return " ".join(str(part) for part in value)
    return str(value)
