"""The settings of dumps and drills, declared once; light, as sections.py."""

from __future__ import annotations

from pgrecall.settings.declare import Section, setting

_DAY = 86_400.0


class DumpSettings(Section):
    """How dumps are made: ``[dump]``."""

    format: str = setting(
        default="custom",
        choices=("plain", "custom", "directory", "tar"),
        doc="Format of pg_dump. custom and directory can be loaded in part and in parallel;"
        " directory is written with several sessions, and needs room in spool_directory.",
    )
    jobs: int = setting(
        default=1,
        bounds=(1, 256),
        doc="Databases that are dumped at the same time; sessions of one, with format directory.",
    )
    compression: str = setting(
        default="zstd", choices=("zstd", "lz4", "none"), doc="Compression of what is stored."
    )
    level: int = setting(
        default=3, bounds=(1, 19), doc="Level of the compression; 1 is the fastest."
    )
    lock_timeout_seconds: float = setting(
        default=0.0,
        unit="seconds",
        bounds=(0, _DAY),
        doc="How long pg_dump waits for the lock on a table before it gives up. 0: as long as it"
        " takes.",
    )
    spool_directory: str = setting(
        default="",
        is_path=True,
        doc="Where what cannot be streamed lies meanwhile: dumps of format directory, and what is"
        " loaded with several jobs. Empty: the system's directory for temporary files.",
    )


class DrillSettings(Section):
    """How restore drills are run: ``[drill]``."""

    directory: str = setting(
        default="",
        is_path=True,
        doc="Where copies are restored to, and removed again. It needs room for the whole server."
        " Empty: the system's directory for temporary files.",
    )
    at: str = setting(
        default="latest",
        doc="Which moment is restored: latest, immediate, random, or a time with its zone.",
    )
    amcheck: bool = setting(
        default=True, doc="Whether tables and indexes of the copy are examined by pg_amcheck."
    )
    checks: tuple[str, ...] = setting(
        default=(),
        doc="Files of SQL, or directories of them, that the copy is to pass (docs/drills.md).",
    )
