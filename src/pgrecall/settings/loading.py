"""Reading settings: the file, then the environment, then flags; later ones win.

Unknown and bad keys are errors, all listed at once with their place. Light.

Environment: ``PGRECALL_<SECTION>__<KEY>`` and ``PGRECALL_<SECTION>__<NAME>__<KEY>``
for ``servers``, ``repositories`` and ``policies``. Only names with two underscores in a row
are settings: Kubernetes injects ``PGRECALL_PORT`` and the like for a service
that is called pgrecall.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping

from pgrecall.errors import SettingsError
from pgrecall.settings.collection import Settings
from pgrecall.settings.declare import Problem, Section, Setting, Value, did_you_mean
from pgrecall.settings.policies import PolicySettings, RetentionSettings
from pgrecall.settings.sections import (
    NAMED_SECTIONS,
    SINGLE_SECTIONS,
    RepositorySettings,
)

PREFIX = "PGRECALL_"
CONFIG_VARIABLE = "PGRECALL_CONFIG"

Table = tuple[str, ...]
_Values = dict[Table, dict[str, Value]]


def load_settings(
    config: str | None,
    environment: Mapping[str, str],
    flags: Mapping[str, Value] | None = None,
) -> Settings:
    """Load and check all settings.

    ``config`` is the path given by --config, or None to search; ``environment``
    is normally os.environ; ``flags`` maps ``"backup.level"`` to a value from the
    command line. Raises SettingsError that names every problem and its place.
    """
    path = _find_file(config, environment)
    problems: list[str] = []
    values: _Values = {(section,): {} for section in SINGLE_SECTIONS}
    if path:
        _read_file(path, values, problems)
    _read_environment(environment, values, problems)
    for dotted, value in (flags or {}).items():
        *table, key = dotted.split(".")
        _store_value(values, (tuple(table), key, value), f"--{key.replace('_', '-')}", problems)
    settings = _build(path, values, problems)
    if problems:
        where = f" in {path}" if path else ""
        raise SettingsError(
            f"{len(problems)} bad setting{'s' if len(problems) > 1 else ''}{where}:\n"
            + "\n".join(f"  {problem}" for problem in problems),
            hint="docs/settings.md lists every setting with its unit and bounds",
        )
    return settings


def searched_paths(environment: Mapping[str, str]) -> list[str]:
    """The files that are looked for when --config is not given, in order."""
    if environment.get(CONFIG_VARIABLE):
        return [_absolute(environment[CONFIG_VARIABLE])]
    home = environment.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return [
        _absolute("pgrecall.toml"),
        os.path.join(home, "pgrecall", "pgrecall.toml"),
        "/etc/pgrecall/pgrecall.toml",
    ]


def _absolute(path: str) -> str:
    """Absolute; a relative path as it is when the working directory is gone: nothing is there."""
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        return path


def _find_file(config: str | None, environment: Mapping[str, str]) -> str:
    candidates = [_absolute(config)] if config else searched_paths(environment)
    for candidate in candidates:
        if os.path.exists(candidate):
            return candidate
    is_searched = not config and not environment.get(CONFIG_VARIABLE)
    if is_searched and any(name.startswith(f"{PREFIX}SERVERS__") for name in environment):
        return ""  # a container may be configured by its environment alone
    raise SettingsError(
        "there is no configuration file: " + ", ".join(candidates),
        hint="name one with --config or PGRECALL_CONFIG, or write one with pgrecall init",
    )


def _read_file(path: str, values: _Values, problems: list[str]) -> None:
    try:
        with open(path, "rb") as file:
            content = file.read()
        document = tomllib.loads(content.decode())
    except OSError as error:
        raise SettingsError(
            f"cannot read {path}: {error.strerror}",
            hint="the user that runs pgrecall must be able to read it",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error
    mistakes: list[tuple[Table, str, str]] = []
    base = os.path.dirname(path)
    for table, key, value in _entries(document):
        local: list[str] = []
        _store_value(values, (table, key, value), "", local, base)
        mistakes.extend((table, key, text) for text in local)
    if mistakes:
        lines = _line_numbers(content.decode())
        for table, key, text in mistakes:
            line = lines.get((*table, key)) or lines.get(table)
            place = f"line {line}: " if line else ""
            problems.append(place + text)


def _entries(document: Mapping[str, object]) -> Iterator[tuple[Table, str, object]]:
    """Every (table, key, value); a named table without keys yields the key ``""``."""
    for section, body in document.items():
        if not isinstance(body, dict):
            yield (), section, body
        elif section in NAMED_SECTIONS:
            for name, inner in body.items():
                if not isinstance(inner, dict):
                    yield (section,), name, inner
                    continue
                yield (section, name), "", None
                for key, value in inner.items():
                    yield (section, name), key, value
        elif section in SINGLE_SECTIONS:
            for key, value in body.items():
                yield (section,), key, value
        else:
            yield (section,), "", None


def _store_value(
    values: _Values,
    entry: tuple[Table, str, object],
    place: str,
    problems: list[str],
    base: str = "",
) -> None:
    """Check one value and keep it, or add to ``problems``. ``base``: see Setting.is_path."""
    table, key, value = entry
    shown = place or f"[{_dotted(table)}] {key}".strip()
    kind = _kind_of(table)
    if kind is None:
        word = table[0] if table else key
        known = [*SINGLE_SECTIONS, *NAMED_SECTIONS]
        if word in NAMED_SECTIONS:
            problems.append(f"{shown}: belongs into a table like [{word}.NAME]")
        else:
            table_shown = f"[{_dotted((word,))}]" if table else f"{word!r} at the top of the file"
            problems.append(f"{place or table_shown}: is unknown{did_you_mean(word, known)}")
        return
    kept = values.setdefault(table, {})
    if not key:
        return
    field = kind.fields.get(key)
    if field is None or not field.is_key:
        keys = [name for name, known_field in kind.fields.items() if known_field.is_key]
        problems.append(f"{shown}: is unknown{did_you_mean(key, keys)}")
        return
    try:
        is_text = bool(place) and isinstance(value, str)
        checked = field.from_text(str(value)) if is_text else field.check(value)
    except Problem as problem:
        problems.append(f"{shown}: {problem}")
        return
    kept[key] = _located(field, checked, base)


def _kind_of(table: Table) -> type[Section] | None:
    if len(table) == 1:
        return SINGLE_SECTIONS.get(table[0])
    if len(table) == 2:
        return NAMED_SECTIONS.get(table[0])
    return None


def _located(field: Setting, value: Value, base: str) -> Value:
    """Make paths absolute: relative to ``base``, or to the working directory if that is empty."""
    if not isinstance(value, str) or not value:
        return value
    if field.is_path:
        return _absolute(os.path.join(base, os.path.expanduser(value)))
    if field.is_secret and value.startswith("file:"):
        path = os.path.expanduser(value.removeprefix("file:"))
        return "file:" + _absolute(os.path.join(base, path))
    return value


def _read_environment(environment: Mapping[str, str], values: _Values, problems: list[str]) -> None:
    for variable in sorted(environment):
        if not variable.startswith(PREFIX) or "__" not in variable:
            continue
        # A name may itself hold two underscores in a row: the first and the last pair divide.
        section, _, rest = variable.removeprefix(PREFIX).lower().partition("__")
        word, divider, key = rest.rpartition("__")
        if section in NAMED_SECTIONS and divider:
            name = _matching_name(word, section, values, variable, problems)
            entry: tuple[Table, str, object] = ((section, name), key, environment[variable])
        elif section in SINGLE_SECTIONS and not divider:
            entry = ((section,), key, environment[variable])
        else:
            known = [*SINGLE_SECTIONS, *NAMED_SECTIONS]
            problems.append(
                f"{variable}: is unknown; it is PGRECALL_<SECTION>__<KEY>, or "
                f"PGRECALL_<SECTION>__<NAME>__<KEY> for servers and repositories"
                + did_you_mean(section, known)
            )
            continue
        _store_value(values, entry, variable, problems)


def _matching_name(
    word: str, section: str, values: _Values, variable: str, problems: list[str]
) -> str:
    """The configured name that ``word`` stands for: case and signs other than a-z0-9 are equal."""
    names = [table[1] for table in values if table[0] == section and len(table) == 2]
    matches = [name for name in names if variable_word(name).lower() == word]
    if len(matches) > 1:
        problems.append(f"{variable}: could mean {' or '.join(repr(name) for name in matches)}")
    return matches[0] if matches else word


def variable_word(name: str) -> str:
    """A server's or repository's name as it is written inside an environment variable."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name).upper()


def _build(path: str, values: _Values, problems: list[str]) -> Settings:
    sections: dict[str, dict[str, Section]] = {name: {} for name in NAMED_SECTIONS}
    single: dict[str, Section] = {}
    for table, kept in values.items():
        if len(table) == 1:
            single[table[0]] = SINGLE_SECTIONS[table[0]](**kept)
        else:
            kind = NAMED_SECTIONS[table[0]]
            sections[table[0]][table[1]] = kind(name=table[1], **kept)
    repositories = sections["repositories"]
    for name, server in sections["servers"].items():
        for wanted in server.repositories:  # type: ignore[attr-defined]
            if wanted not in repositories:
                problems.append(
                    f"[{_dotted(('servers', name))}] repositories: there is no repository "
                    f"{wanted!r}{did_you_mean(wanted, repositories)}"
                )
    for repository in repositories.values():
        assert isinstance(repository, RepositorySettings)
        problems.extend(_missing_keys(repository))
    problems.extend(_unknown_policies(sections, single))
    return Settings(
        servers=sections["servers"],  # type: ignore[arg-type]
        repositories=repositories,  # type: ignore[arg-type]
        policies=sections["policies"],  # type: ignore[arg-type]
        path=path,
        **single,
    )


_NEEDED = {
    "local": ("path",),
    "s3": ("bucket",),
    "gcs": ("bucket",),
    "azure": ("bucket", "account"),
}


def _missing_keys(repository: RepositorySettings) -> list[str]:
    place = f"[{_dotted(('repositories', repository.name))}]"
    found = [
        f"{place} {key}: is needed with store = {repository.store!r}"
        for key in _NEEDED[repository.store]
        if not getattr(repository, key)
    ]
    if bool(repository.access_key) != bool(repository.secret_key):
        lonely = "secret_key" if repository.access_key else "access_key"
        found.append(f"{place} {lonely}: is needed when the other of the pair is given")
    if repository.endpoint.startswith("http://") and not repository.allow_http:
        found.append(f"{place} endpoint: is without TLS; allow_http = true accepts that")
    return found


def _unknown_policies(
    sections: Mapping[str, Mapping[str, Section]], single: Mapping[str, Section]
) -> Iterator[str]:
    """Policies that are named and not there, and a grace that no lease would outlive."""
    profiles = [name for name in PolicySettings.fields["profile"].choices if name]
    known = [*sections["policies"], *profiles]
    named = [
        (f"[{_dotted((section, name))}] retention", str(getattr(found, "retention", "")))
        for section in ("servers", "repositories")
        for name, found in sections[section].items()
    ]
    retention = single["retention"]
    assert isinstance(retention, RetentionSettings)
    for place, wanted in (*named, ("[retention] policy", retention.policy)):
        if wanted and wanted not in known:
            yield f"{place}: there is no policy or profile {wanted!r}{did_you_mean(wanted, known)}"
    if retention.grace_seconds <= retention.lease_seconds:
        yield "[retention] grace_seconds: must be longer than lease_seconds"


def _dotted(table: Table) -> str:
    """A table's name as it is written in TOML."""
    return ".".join(part if is_bare(part) else quoted(part) for part in table)


def is_bare(word: str) -> bool:
    """Whether TOML takes ``word`` as a key without quotes."""
    return bool(word) and word.isascii() and all(c.isalnum() or c in "-_" for c in word)


def quoted(text: str) -> str:
    """A TOML basic string for any text (TOML 1.0, section String)."""
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    shown = (
        escapes.get(c) or (f"\\u{ord(c):04X}" if ord(c) < 32 or ord(c) == 127 else c) for c in text
    )
    return f'"{"".join(shown)}"'


def _line_numbers(text: str) -> dict[Table, int]:
    """Lines of table headers and keys: approximate inside multi-line values, which is enough."""
    found: dict[Table, int] = {}
    current: Table = ()
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        is_header = stripped.startswith("[")
        if not is_header and "=" not in stripped:
            continue
        source = stripped if is_header else _key_part(stripped) + " = 0"
        try:
            path = _only_path(tomllib.loads(source))
        except tomllib.TOMLDecodeError:
            continue
        if is_header:
            current = path
        found.setdefault(path if is_header else current + path, number)
    return found


def _key_part(line: str) -> str:
    """What stands before the equals sign, which may itself stand inside a quoted key."""
    quote = ""
    for position, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character == "=":
            return line[:position]
    return line


def _only_path(document: Mapping[str, object]) -> Table:
    path: list[str] = []
    node: object = document
    while isinstance(node, dict) and node:
        key, node = next(iter(node.items()))
        path.append(key)
    return tuple(path)
