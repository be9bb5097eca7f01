"""What pg_dump and pg_dumpall are told on their command lines; pure. No secret stands there.

Source: PostgreSQL's documentation of both, versions 13 to 18.
"""

from __future__ import annotations

import msgspec

from pgrecall.errors import UsageError
from pgrecall.model.dumps import DumpContent, DumpFormat

_FORMATS: dict[DumpFormat, str] = {"plain": "p", "custom": "c", "directory": "d", "tar": "t"}
METHODS_BY_NAME_SINCE = 16
_LARGE_OBJECTS_SINCE = 16
_NEEDS_LOCK_MILLISECONDS = 1000


class Compression(msgspec.Struct, frozen=True):
    """What the tool itself compresses with; ``level`` None: the method's own default."""

    method: str
    level: int | None = None

    def __str__(self) -> str:
        return self.method if self.level is None else f"{self.method}:{self.level}"


NONE = Compression("none")


def parse_compression(text: str) -> Compression:
    """``gzip``, ``zstd:3``; raises UsageError."""
    method, colon, level = text.partition(":")
    is_number = level.isascii() and level.isdigit()
    if method not in ("none", "gzip", "lz4", "zstd") or (colon and not is_number):
        raise UsageError(
            f"{text!r} is no compression",
            hint="METHOD or METHOD:LEVEL, with none, gzip, lz4 or zstd",
        )
    return Compression(method, int(level) if colon else None)


class DumpArguments(msgspec.Struct, frozen=True, kw_only=True):
    """What every database of a dump has in common. ``tool_major``: pg_dump's version."""

    tool_major: int
    dump_format: DumpFormat
    content: DumpContent
    compression: Compression
    lock_timeout_seconds: float = 0.0
    jobs: int = 1

    def of_database(
        self, snapshot: str, *, directory: str = "", with_create: bool = False
    ) -> list[str]:
        """Arguments of pg_dump; its database stands in the environment.

        ``snapshot``: an exported one, or empty. ``directory``: where format directory goes, all
        others go to standard output.
        ``with_create``: have it say CREATE DATABASE, too.
        """
        arguments = [
            "--no-password",
            f"--format={_FORMATS[self.dump_format]}",
            *([f"--snapshot={snapshot}"] if snapshot else []),
            *self._compress(),
            *self._content(),
        ]
        if with_create:
            arguments.append("--create")
        if self.lock_timeout_seconds:
            milliseconds = round(self.lock_timeout_seconds * _NEEDS_LOCK_MILLISECONDS)
            arguments.append(f"--lock-wait-timeout={milliseconds}")
        if self.dump_format == "directory":
            arguments += [f"--file={directory}", f"--jobs={self.jobs}"]
        return arguments

    def of_globals(self, *, with_passwords: bool) -> list[str]:
        """Arguments of pg_dumpall: roles and tablespaces."""
        arguments = ["--no-password", "--globals-only"]
        if not with_passwords:
            arguments.append("--no-role-passwords")
        if self.lock_timeout_seconds:
            milliseconds = round(self.lock_timeout_seconds * _NEEDS_LOCK_MILLISECONDS)
            arguments.append(f"--lock-wait-timeout={milliseconds}")
        return arguments

    def _compress(self) -> list[str]:
        method, level = self.compression.method, self.compression.level
        if self.dump_format == "tar":
            return []  # it knows no compression, not even none
        if method == "none":
            return ["--compress=0"]
        if self.tool_major >= METHODS_BY_NAME_SINCE:
            return [f"--compress={self.compression}"]
        # Before there were methods there was gzip.
        return [f"--compress={6 if level is None else level}"]

    def _content(self) -> list[str]:
        content = self.content
        arguments = [
            f"--{option}={pattern}"
            for option, patterns in (
                ("table", content.tables),
                ("exclude-table", content.exclude_tables),
                ("schema", content.schemas),
                ("exclude-schema", content.exclude_schemas),
                ("exclude-table-data", content.exclude_table_data),
            )
            for pattern in patterns
        ]
        if content.schema_only:
            arguments.append("--schema-only")
        if content.data_only or content.large_objects == "only":
            arguments.append("--data-only")
        name = "large-objects" if self.tool_major >= _LARGE_OBJECTS_SINCE else "blobs"
        if content.large_objects in ("with", "only"):
            arguments.append(f"--{name}")
        if content.large_objects == "without":
            arguments.append(f"--no-{name}")
        if content.large_objects == "only":
            arguments.append("--exclude-table-data=*.*")
        return arguments


def suffix(dump_format: DumpFormat, compression: Compression) -> str:
    """How the file of a database ends; a directory's with a slash."""
    if dump_format == "plain":
        return (
            ".sql" + {"none": "", "gzip": ".gz", "lz4": ".lz4", "zstd": ".zst"}[compression.method]
        )
    return {"custom": ".dump", "directory": "/", "tar": ".tar"}[dump_format]
