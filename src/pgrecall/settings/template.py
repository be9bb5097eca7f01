"""The commented pgrecall.toml that ``init`` writes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from pgrecall.settings.declare import Section, Setting, Value
from pgrecall.settings.loading import is_bare, quoted
from pgrecall.settings.sections import NAMED_SECTIONS, SINGLE_SECTIONS

_WIDTH = 88

Values = Mapping[str, Value]

_HEADING = """\
# pgrecall.toml: what pgrecall protects, and where it keeps it.
#
# Every setting stands here with its default behind a '#'; take the '#' away to
# change it. The environment wins over this file (PGRECALL_BACKUP__LEVEL=3), an
# option of the command line wins over both. Relative paths are relative to this
# file. A secret is never written here, only where it is found: env:NAME or
# file:/path.
"""


def render_template(
    named: Mapping[str, Mapping[str, Values]], single: Mapping[str, Values] | None = None
) -> str:
    """The text of a configuration file.

    ``named`` holds values by section (``servers``, ``repositories``), name and
    key; ``single`` by section and key. Every setting appears with its
    documentation; values that differ from the default stand uncommented.
    Reading the text back gives the same values.
    """
    parts = [_HEADING]
    for section, kind in NAMED_SECTIONS.items():
        for name, values in named.get(section, {}).items():
            parts.append(_table(f"{section}.{_key(name)}", kind, values))
    for section, kind in SINGLE_SECTIONS.items():
        parts.append(_table(section, kind, (single or {}).get(section, {})))
    return "\n".join(parts)


def toml_value(value: Value) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(quoted(part) for part in value) + "]"
    return quoted(value) if isinstance(value, str) else repr(value)


def constraint(field: Setting) -> str:
    """Choices, or bounds with the unit; empty when anything goes."""
    if field.choices:
        return ", ".join(quoted(choice) for choice in field.choices)
    if field.bounds is not None:
        lowest, highest = field.bounds
        unit = f" {field.unit}" if field.unit else ""
        return f"{lowest:.15g} to {highest:.15g}{unit}"
    return "env:NAME or file:/path" if field.is_secret else ""


def _table(heading: str, kind: type[Section], values: Values) -> str:
    unknown = set(values) - set(kind.fields)
    if unknown:
        raise KeyError(f"[{heading}] has no settings {sorted(unknown)}")
    lines = [f"[{heading}]"]
    for key, field in kind.fields.items():
        if not field.is_key:
            continue
        limits = constraint(field)
        doc = field.doc + (f" ({limits})" if limits else "")
        lines += textwrap.wrap(
            doc, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
        )
        value = values.get(key, field.default)
        mark = "#" if value == field.default else ""
        lines.append(f"{mark}{key} = {toml_value(value)}")
        lines.append("")
    return "\n".join(lines)


def _key(name: str) -> str:
    return name if is_bare(name) else quoted(name)
