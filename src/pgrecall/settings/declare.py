"""The language in which settings are declared: ``Section`` and ``setting``.

A section is a plain class whose fields are declared once, with default, unit,
bounds, choices and documentation. Reading, checking, the generated page, the
JSON schema and the template of ``init`` all come from that declaration.

Light: this module is on the path of ``wal push``, where start-up counts. That
is why it uses neither dataclasses nor msgspec.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any, ClassVar, Self, dataclass_transform

from pgrecall.errors import SettingsError

Value = str | int | float | bool | tuple[str, ...]

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


class Problem(Exception):
    """A value does not fit its declaration; the text never repeats a secret."""


class Setting:
    """One declared field.

    ``kind`` is the Python type, taken from the default. ``bounds`` are inclusive.
    ``is_secret``: the value is a reference (``env:NAME`` or ``file:/path``).
    ``is_path``: a relative value is relative to the directory of the file.
    ``is_key``: False for what comes from the table's own name.
    """

    __slots__ = (
        "bounds", "choices", "default", "doc", "is_key", "is_path", "is_secret", "kind", "unit",
    )  # fmt: skip

    def __init__(self, default: Value, options: Mapping[str, Any]) -> None:
        self.default = default
        self.kind = type(default)
        self.doc: str = options["doc"]
        self.unit: str = options.get("unit", "")
        self.bounds: tuple[float, float] | None = options.get("bounds")
        self.choices: tuple[str, ...] = options.get("choices", ())
        self.is_secret: bool = options.get("is_secret", False)
        self.is_path: bool = options.get("is_path", False)
        self.is_key: bool = options.get("is_key", True)

    def check(self, value: object) -> Value:
        """Return ``value`` in its declared type; raises Problem when it does not fit."""
        typed = self._typed(value)
        if self.is_secret:
            _check_reference(str(typed))
        if self.choices and typed not in self.choices:
            raise Problem(
                f"{typed!r} is not one of {', '.join(repr(choice) for choice in self.choices)}"
                + did_you_mean(str(typed), self.choices)
            )
        if self.bounds is not None and isinstance(typed, int | float):
            lowest, highest = self.bounds
            if not lowest <= typed <= highest:  # also refuses a NaN
                raise Problem(f"{typed} is outside {lowest} to {highest}{self._unit_suffix()}")
        return typed

    def from_text(self, text: str) -> Value:
        """Read the text of an environment variable or a flag; raises Problem."""
        if self.kind is bool:
            lowered = text.strip().lower()
            if lowered not in _TRUE | _FALSE:
                raise Problem(f"{text!r} is neither true nor false")
            return lowered in _TRUE
        if self.kind is tuple:
            return self.check([part.strip() for part in text.split(",") if part.strip()])
        if self.kind in {int, float}:
            try:
                return self.check(self.kind(text.strip()))
            except ValueError:
                raise Problem(f"{text!r} is not {_KIND_NAMES[self.kind]}") from None
        return self.check(text)

    def _typed(self, value: object) -> Value:
        if self.kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if self.kind is tuple and isinstance(value, list | tuple):
            if all(isinstance(part, str) for part in value):
                return tuple(value)
            raise Problem("is not a list of strings")
        if type(value) is not self.kind:
            shown = "" if self.is_secret else f"{value!r} "
            raise Problem(f"{shown}is not {_KIND_NAMES[self.kind]}")
        if isinstance(value, str) and "\0" in value:
            raise Problem("holds a NUL character")
        return value

    def _unit_suffix(self) -> str:
        return f" {self.unit}" if self.unit else ""


_KIND_NAMES: dict[type, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a list of strings",
}


def setting(*, default: Value, doc: str, **options: Any) -> Any:
    """Declare a field of a Section; ``options`` are those of Setting."""
    unknown = set(options) - set(Setting.__slots__)
    if unknown:
        raise TypeError(f"a setting has no {', '.join(sorted(unknown))}")
    return Setting(default, {**options, "doc": doc})


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting,))
class Section:
    """Base of all sections: immutable values of the declared fields.

    The constructor takes fields by keyword, checks them, fills in defaults, and
    raises SettingsError that lists every bad value.
    """

    fields: ClassVar[Mapping[str, Setting]] = {}

    def __init_subclass__(cls) -> None:
        cls.fields = {
            name: value for name, value in vars(cls).items() if isinstance(value, Setting)
        }

    def __init__(self, **values: Value) -> None:
        problems = [
            f"{type(self).__name__} has no setting {name!r}" + did_you_mean(name, self.fields)
            for name in values
            if name not in self.fields
        ]
        for name, field in self.fields.items():
            try:
                checked = field.check(values[name]) if name in values else field.default
            except Problem as problem:
                problems.append(f"{name}: {problem}")
            else:
                object.__setattr__(self, name, checked)
        if problems:
            raise SettingsError("; ".join(problems))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: {name}")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((type(self).__name__, *(vars(self).values())))

    def __repr__(self) -> str:
        changed = (
            f"{name}={value!r}"
            for name, value in vars(self).items()
            if value != self.fields[name].default
        )
        return f"{type(self).__name__}({', '.join(changed)})"

    def replace(self, **changes: Value) -> Self:
        """A copy with some fields changed; raises SettingsError for bad values."""
        return type(self)(**{**vars(self), **changes})


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'level'?`` or an empty text."""
    # Only a mistake needs it, and every archived segment would pay for importing it.
    near: list[str] = import_module("difflib").get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _check_reference(text: str) -> None:
    """Accept an empty text, ``env:NAME`` and ``file:PATH``; never repeat what was given."""
    kind, _, rest = text.partition(":")
    if text and (kind not in {"env", "file"} or not rest):
        raise Problem("holds a secret itself; write where it is found: env:NAME or file:/path")
