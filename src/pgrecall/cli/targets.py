"""The options that name a recovery target, of restore, rescue and recoverable."""

from __future__ import annotations

from collections.abc import Mapping

from pgrecall.errors import UsageError
from pgrecall.model.lsn import Lsn
from pgrecall.model.targets import (
    Immediate,
    Latest,
    RecoveryTarget,
    ToLsn,
    ToName,
    ToTime,
    ToXid,
    parse_time,
)


def target_of(options: Mapping[str, object]) -> RecoveryTarget:
    """The target that --to-time and its likes name; raises UsageError when they name several."""
    kinds = {"to_time": "time", "to_lsn": "lsn", "to_xid": "xid", "to_name": "name"}
    return chosen_target(options, kinds | {"immediate": "immediate"}, "targets")


def chosen_target(
    options: Mapping[str, object], kinds: Mapping[str, str], word: str
) -> RecoveryTarget:
    """The target that one of the options ``kinds`` names; Latest when none was given.

    ``kinds``: of each option what it names; ``word`` for all of them, in messages. Raises
    UsageError when several were given, or ``exclusive`` with one that has no before.
    """
    given = [name for name in kinds if options[name] not in {None, False}]
    if len(given) > 1:
        shown = " and ".join(map(_option, given))
        raise UsageError(f"{shown} are different {word}", hint="name one")
    chosen = given[0] if given else ""
    kind = kinds.get(chosen, "")
    is_inclusive = not options["exclusive"]
    if not is_inclusive and kind not in _WITH_BEFORE:
        *others, last = (_option(name) for name in kinds if kinds[name] in _WITH_BEFORE)
        raise UsageError(f"--exclusive needs {', '.join(others)} or {last}")
    text = str(options.get(chosen))
    match kind:
        case "time":
            return ToTime(parse_time(text), is_inclusive)
        case "lsn":
            return ToLsn(Lsn.parse(text), is_inclusive)
        case "xid":
            return ToXid(int(text), is_inclusive)
        case "name":
            return ToName(text)
        case "immediate":
            return Immediate()
        case _:
            return Latest()


_WITH_BEFORE = frozenset({"time", "lsn", "xid"})


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
