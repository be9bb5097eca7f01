"""The options that name a recovery target, of restore and rescue."""

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
    """The target that options name; raises UsageError when they name several."""
    names = ("to_time", "to_lsn", "to_xid", "to_name", "immediate")
    given = [name for name in names if options[name] not in {None, False}]
    shown = " and ".join("--" + name.replace("_", "-") for name in given)
    if len(given) > 1:
        raise UsageError(f"{shown} are different targets", hint="name one")
    is_inclusive = not options["exclusive"]
    chosen = given[0] if given else "latest"
    if not is_inclusive and chosen not in {"to_time", "to_lsn", "to_xid"}:
        raise UsageError("--exclusive needs --to-time, --to-lsn or --to-xid")
    text = str(options.get(chosen))
    match chosen:
        case "to_time":
            return ToTime(parse_time(text), is_inclusive)
        case "to_lsn":
            return ToLsn(Lsn.parse(text), is_inclusive)
        case "to_xid":
            return ToXid(int(text), is_inclusive)
        case "to_name":
            return ToName(text)
        case "immediate":
            return Immediate()
        case _:
            return Latest()
