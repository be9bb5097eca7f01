"""What a capture leaves out of a repository that is not encrypted: secrets in configuration.

It errs towards leaving out: a command may hold a token anywhere, so its whole text goes.
"""

from __future__ import annotations

import re

WITHHELD = "(withheld: the repository is not encrypted)"

_NAMES = re.compile(
    r"conninfo|_command$|passw|passphrase|secret|token|credential|(^|[._])(api|access)?_?key$",
    re.IGNORECASE,
)
_HARMLESS = frozenset({"password_encryption", "ssl_passphrase_command_supports_reload"})
_VALUE = re.compile(
    r"passw(or)?d\s*=|[a-z][a-z0-9+.-]*://[^\s/'\"@]*:[^\s'\"@]*@|(secret|token|api_?key)\s*=",
    re.IGNORECASE,
)
_LINE = re.compile(r"^(?P<start>\s*#?\s*(?P<name>[A-Za-z_][\w.$]*)(\s*=\s*|\s+))(?P<value>\S.*)$")
_EMPTY = re.compile(r"''(\s|#|$)")
_RULE = re.compile(r"\"?(ldapbindpasswd|radiussecrets|ldapurl)\"?\s*=", re.IGNORECASE)


def is_secret(name: str, value: str) -> bool:
    """Whether a setting may hold a secret, by its name or by what it looks like."""
    if not value or name in _HARMLESS:
        return False
    return _NAMES.search(name) is not None or _VALUE.search(value) is not None


def without_secrets(text: str) -> tuple[str, bool]:
    """A configuration file without what may be a secret, and whether something was left out.

    Comments are looked at too: what was commented out may still be in use elsewhere.
    """
    lines: list[str] = []
    is_cut = goes_on = False
    for line in text.split("\n"):
        if goes_on:
            goes_on = line.endswith("\\")
            continue
        kept = _without_secret(line)
        if kept != line:
            is_cut = True
            goes_on = line.endswith("\\")
        lines.append(kept)
    return "\n".join(lines), is_cut


def _without_secret(line: str) -> str:
    rule = _RULE.search(line)
    if rule is not None:
        return f"{line[: rule.start()]}# {WITHHELD}"
    match = _LINE.match(line)
    is_empty = match is not None and _EMPTY.match(match["value"]) is not None
    if match is not None and not is_empty and is_secret(match["name"], match["value"]):
        return f"{match['start']}'{WITHHELD}'"
    return f"# {WITHHELD}" if _VALUE.search(line) else line
