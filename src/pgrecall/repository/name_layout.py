"""Where name maps, captures and sets lie in a repository: pure functions, as those of layout.py."""

from __future__ import annotations

from pgrecall.repository.layout import backup_prefix, number_part, server_prefix


def names_prefix(server: str, generation: int, timeline: int | None = None) -> str:
    """Prefix of the records of name maps of a generation, or of one timeline."""
    prefix = f"{server_prefix(server)}names/{number_part(generation)}/at/"
    return prefix if timeline is None else f"{prefix}{timeline:08X}/"


def name_record_key(server: str, generation: int, timeline: int, lsn: int, record_id: str) -> str:
    """Key of the record of all name maps at one position."""
    return f"{names_prefix(server, generation, timeline)}{lsn:016X}-{record_id}.json"


def generation_of_name_record(server: str, key: str) -> int | None:
    """The generation of a record of name maps, by its key; None for other keys."""
    return _generation_of_names(server, key, "at/")


def generation_of_name_map(server: str, key: str) -> int | None:
    """The generation of a name map, by its key; None for other keys."""
    return _generation_of_names(server, key, "maps/")


def _generation_of_names(server: str, key: str, directory: str) -> int | None:
    prefix = f"{server_prefix(server)}names/"
    number, _, rest = key.removeprefix(prefix).partition("/")
    if not key.startswith(prefix) or not rest.startswith(directory) or not number.isdigit():
        return None
    return int(number)


def name_maps_prefix(server: str, generation: int) -> str:
    """Prefix of the name maps of a generation."""
    return f"{server_prefix(server)}names/{number_part(generation)}/maps/"


def name_map_key(server: str, generation: int, name: str) -> str:
    """Key of one database's name map; its ``name`` is that of its content (hex)."""
    return f"{name_maps_prefix(server, generation)}{name}"


def captures_prefix(server: str) -> str:
    """Prefix of the captures of a server."""
    return f"{server_prefix(server)}captures/"


def capture_key(server: str, capture_id: str) -> str:
    """Key of one capture."""
    return f"{captures_prefix(server)}{capture_id}.json"


def sets_prefix(server: str) -> str:
    """Prefix of the records of a server's recovery sets."""
    return f"{server_prefix(server)}sets/"


def item_prefix(server: str, item_id: str) -> str:
    """Prefix of the objects of a backup, dump, set or capture, and of nothing else."""
    if item_id.startswith("s-"):
        return f"{sets_prefix(server)}{item_id}.json"
    if item_id.startswith("m-"):
        return capture_key(server, item_id)
    return backup_prefix(server, item_id)
