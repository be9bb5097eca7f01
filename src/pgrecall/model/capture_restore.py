"""What bringing parts of a capture back takes: decided from facts, without asking anybody."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from pgrecall.model.capture_diff import HBA, IDENT, UNTOLD, kinds_of_files
from pgrecall.model.captures import CapturedSetting, CaptureFacts
from pgrecall.model.withholding import WITHHELD, is_secret

Part = Literal["hba", "ident", "settings", "tablespaces", "slots", "subscriptions"]

#: In the order in which they are brought back: what is checked and put back first.
PARTS: tuple[Part, ...] = ("hba", "ident", "settings", "tablespaces", "slots", "subscriptions")

AUTO_CONF = "postgresql.auto.conf"

_FILE = "configuration file"
_PLACES = frozenset({"config_file", "data_directory", "hba_file", "ident_file"})
_AUTO_LINE = re.compile(r"^\s*([A-Za-z_][\w.$]*)\s*=?\s*(?:'((?:[^']|'')*)'|([^\s#']+))")


class RestoreStep(msgspec.Struct, frozen=True, kw_only=True):
    """One thing: ``set`` and ``reset`` by ALTER SYSTEM, ``write`` a file, ``create`` by SQL.

    ``leave``: it stays as it is, although it differs; ``why`` says what keeps it. ``before`` and
    ``after`` are for people, without secrets.
    """

    part: Part
    name: str
    action: Literal["set", "reset", "write", "create", "leave"]
    before: str = ""
    after: str = ""
    why: str = ""


class KnownSetting(msgspec.Struct, frozen=True, kw_only=True):
    """A setting that the server has. ``auto_value``: in postgresql.auto.conf, None: not there.

    ``is_in_files``: another file sets it, too; ``default``: what it is where nothing sets it.
    """

    default: str | None
    needs_restart: bool
    may_alter: bool
    auto_value: str | None = None
    is_in_files: bool = False


class RestorePlace(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the server beside its facts.

    ``is_here``: its files can be written on this host, ``files`` says where hba and ident are.
    ``directories``: what is wrong with the directory of a tablespace, by path, empty: nothing.
    """

    is_here: bool
    files: Mapping[str, str]
    settings: Mapping[str, KnownSetting]
    directories: Mapping[str, str] = {}


def plan_steps(
    captured: CaptureFacts, live: CaptureFacts, place: RestorePlace, parts: Sequence[Part]
) -> tuple[RestoreStep, ...]:
    """What becomes of each thing that differs; nothing for what is equal."""
    made = _Steps(captured, live, place)
    return tuple(step for part in PARTS if part in parts for step in made.of(part))


def content_of(facts: CaptureFacts, part: str) -> str | None:
    """The file of the rules (hba, ident) in a capture; None when it has none."""
    kinds = kinds_of_files(facts)
    return next((file.content for file in facts.files if kinds[file.path] == part), None)


def auto_values(facts: CaptureFacts) -> dict[str, str]:
    """What ALTER SYSTEM had set, by name: the lines of postgresql.auto.conf in a capture."""
    found = {}
    for file in facts.files:
        if posixpath.basename(file.path) != AUTO_CONF:
            continue
        for line in file.content.split("\n"):
            match = _AUTO_LINE.match(line)
            if match is not None:
                quoted = match[2]
                plain = match[3] if quoted is None else quoted
                found[match[1]] = plain.replace("''", "'").replace("\\\\", "\\")
    return found


class _Steps:
    def __init__(self, captured: CaptureFacts, live: CaptureFacts, place: RestorePlace) -> None:
        self._captured = captured
        self._live = live
        self._place = place

    def of(self, part: Part) -> Iterator[RestoreStep]:
        makers: dict[Part, Callable[[], Iterator[RestoreStep]]] = {
            "hba": lambda: self._file("hba"),
            "ident": lambda: self._file("ident"),
            "settings": self._settings,
            "tablespaces": self._tablespaces,
            "slots": self._slots,
            "subscriptions": self._subscriptions,
        }
        return makers[part]()

    # --- files ---------------------------------------------------------------------------

    def _file(self, part: Literal["hba", "ident"]) -> Iterator[RestoreStep]:
        path = self._place.files.get(part, "")
        name = path or {HBA: "pg_hba.conf", IDENT: "pg_ident.conf"}[part]
        wanted = content_of(self._captured, part)
        if wanted is None:
            yield _left(part, name, "the capture does not hold this file")
            return
        if wanted == content_of(self._live, part):
            return
        if WITHHELD in wanted:
            yield _left(part, name, "lines were withheld from the capture: edit the file by hand")
        elif not self._place.is_here or not path:
            yield _left(
                part, name, "the file is on another host, or not this user's: run this there"
            )
        else:
            yield RestoreStep(part=part, name=path, action="write")

    # --- settings ------------------------------------------------------------------------

    def _settings(self) -> Iterator[RestoreStep]:
        old = {one.name: one for one in self._captured.settings}
        new = {one.name: one for one in self._live.settings}
        set_then = auto_values(self._captured)
        for name in sorted(old.keys() | new.keys()):
            was, now = old.get(name), new.get(name)
            if was is not None and was.source != _FILE:
                continue
            if was is not None and now is not None and was.value == now.value:
                continue
            if was is None and now is not None and now.source != _FILE:
                continue
            yield self._setting(name, was, now, was_set=name in set_then)

    def _setting(
        self, name: str, was: CapturedSetting | None, now: CapturedSetting | None, *, was_set: bool
    ) -> RestoreStep:
        known = self._place.settings.get(name)
        problem = self._why_not(name, was, now, known)
        if problem:
            return _left("settings", name, problem)
        assert known is not None
        before = "(default)" if now is None else now.value
        after = "(default)" if was is None else was.value
        is_untold = is_secret(name, before) or is_secret(name, after)
        suffices = self._files_are_equal() or (was is None and not known.is_in_files)
        resets = known.auto_value is not None and not was_set and suffices
        return RestoreStep(
            part="settings",
            name=name,
            action="reset" if resets else "set",
            before=UNTOLD if is_untold else before,
            after=UNTOLD if is_untold else after,
        )

    def _why_not(
        self,
        name: str,
        was: CapturedSetting | None,
        now: CapturedSetting | None,
        known: KnownSetting | None,
    ) -> str:
        """Why a setting that differs stays as it is; empty when it does not."""
        if known is None:
            return "this server has no such setting"
        if name in _PLACES:
            return "it says where files are, which are not moved"
        if now is not None and now.source != _FILE:
            return f"its source is {now.source}, which wins over every file"
        if was is not None and was.is_withheld:
            return "it was withheld from the capture: set it by hand"
        if now is not None and now.is_withheld:
            return "it may hold a secret, which could not be brought back: set it by hand"
        if not known.may_alter:
            return "the role may not change it: GRANT ALTER SYSTEM ON PARAMETER, or a superuser"
        if was is not None and known.auto_value == was.value:
            return "it is set so already, and waits for a restart"
        if was is None and known.default is None:
            return "its default is not known: take its line out by hand"
        return ""

    def _files_are_equal(self) -> bool:
        """Whether all files but postgresql.auto.conf say the same as then."""
        then, now = (
            {file.path: file.content for file in facts.files if _is_settings(file.path)}
            for facts in (self._captured, self._live)
        )
        return bool(then) and then == now

    # --- things --------------------------------------------------------------------------

    def _tablespaces(self) -> Iterator[RestoreStep]:
        present = {one.name: one for one in self._live.tablespaces}
        roles = {one.name for one in self._live.roles}
        for one in self._captured.tablespaces:
            there = present.get(one.name)
            if there is not None:
                if there.location != one.location:
                    yield _left("tablespaces", one.name, f"it is there, at {there.location}")
                continue
            problem = self._place.directories.get(one.location, "")
            if one.owner not in roles:
                problem = f"its owner, the role {one.owner!r}, is not there"
            if problem:
                yield _left("tablespaces", one.name, problem)
            else:
                yield RestoreStep(part="tablespaces", name=one.name, action="create", after=one.sql)

    def _slots(self) -> Iterator[RestoreStep]:
        present = {one.name: one for one in self._live.slots}
        databases = {one.name for one in self._live.databases}
        for one in self._captured.slots:
            there = present.get(one.name)
            if there is not None:
                if there != one:
                    yield _left("slots", one.name, "it is there, otherwise; none is dropped")
                continue
            if one.kind == "logical" and one.database not in databases:
                yield _left("slots", one.name, f"the database {one.database!r} is not there")
                continue
            why = "at the position of now: what was not read before is not in it"
            yield RestoreStep(part="slots", name=one.name, action="create", after=one.sql, why=why)

    def _subscriptions(self) -> Iterator[RestoreStep]:
        present = {(one.database, one.name) for one in self._live.subscriptions}
        databases = {one.name for one in self._live.databases}
        for one in self._captured.subscriptions:
            name = f"{one.database} {one.name}"
            if (one.database, one.name) in present:
                continue
            if not one.connection:
                yield _left("subscriptions", name, "the capture does not hold how it connects")
            elif one.database not in databases:
                yield _left("subscriptions", name, f"the database {one.database!r} is not there")
            else:
                yield RestoreStep(
                    part="subscriptions",
                    name=name,
                    action="create",
                    why="disabled, and without asking the publisher",
                )


def _is_settings(path: str) -> bool:
    return posixpath.basename(path) not in {AUTO_CONF, "pg_hba.conf", "pg_ident.conf"}


def _left(part: Part, name: str, why: str) -> RestoreStep:
    return RestoreStep(part=part, name=name, action="leave", why=why)
