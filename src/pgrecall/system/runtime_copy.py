"""A copy of the running Python environment that another user can execute.

The interpreter may live under a home directory with mode 0700, the package in a clone with mode
0700. The copy holds the interpreter and its standard library (only when the user cannot run the
original), the installed packages, and pgrecall itself, laid out as a virtual environment: plain
``bin/python`` and ``bin/pgrecall`` work in it without any environment variable, as an
archive_command needs them. Files are linked where that is possible, so that it takes a second.
"""

from __future__ import annotations

import compileall
import os
import shutil
import struct
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path

import pgrecall

_PACKAGE = Path(pgrecall.__file__).parent
_LEFT_OUT_OF_LIBRARY = frozenset(
    {"site-packages", "dist-packages", "test", "idlelib", "turtledemo", "tkinter", "lib2to3"}
)
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 5, 15, 29
_ELF_64_LITTLE = b"\x7fELF\x02\x01"
_RELATIVE_LIBRARIES = b"$ORIGIN/../lib"


def copy_environment(destination: Path, *, with_interpreter: bool) -> Path:
    """Lay out the copy under ``destination`` (an existing directory) and return its python.

    ``with_interpreter`` copies the base interpreter too. Raises OSError.
    """
    base_python = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    if with_interpreter:
        base_python = _copy_interpreter(base_python, destination / "base")
    environment = destination / "venv"
    binaries = environment / "bin"
    binaries.mkdir(parents=True)
    for name in ("python", "python3", f"python3.{sys.version_info.minor}"):
        (binaries / name).symlink_to(base_python)
    (environment / "pyvenv.cfg").write_text(
        f"home = {base_python.parent}\n"
        "include-system-site-packages = false\n"
        f"version = {sys.version.split()[0]}\n",
        encoding="utf-8",
    )
    library = environment / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    _copy_packages(library)
    _copy_scripts(Path(sysconfig.get_path("scripts")), binaries)
    return binaries / "python"


def copy_tree(source: Path, destination: Path, leave_out: Callable[[Path], bool]) -> None:
    """Copy a directory so that everybody can read it; symbolic links are kept.

    ``leave_out`` is asked for each entry. Directories are made anew with mode 0755, files linked
    when they are readable by all and on the same filesystem, and copied with 0644 or 0755 else.
    """
    destination.mkdir(parents=True, exist_ok=True)
    destination.chmod(0o755)
    with os.scandir(source) as entries:
        for entry in entries:
            path = Path(entry.path)
            if leave_out(path):
                continue
            target = destination / entry.name
            if entry.is_symlink():
                target.symlink_to(path.readlink())
            elif entry.is_dir():
                copy_tree(path, target, leave_out)
            elif entry.is_file():
                copy_file(path, target)


def copy_file(source: Path, destination: Path) -> None:
    """Copy or link one file so that everybody can read it, and execute it if anybody may."""
    mode = source.stat().st_mode
    if mode & 0o044 == 0o044 and (mode & 0o111 in {0, 0o111}):
        try:
            destination.hardlink_to(source)
        except OSError:
            pass  # another filesystem, or one without links: copied below
        else:
            return
    shutil.copy2(source, destination)
    destination.chmod(0o755 if mode & 0o111 else 0o644)


def point_libraries_to_origin(program: Path) -> bool:
    """Let an ELF program look for its libraries in ``../lib`` beside itself.

    Overwrites in place an absolute DT_RPATH or DT_RUNPATH that has room for it (ELF-64, little
    endian). Returns False, with the file unchanged, when there is none.
    """
    content = bytearray(program.read_bytes())
    place = _library_path_place(content)
    if place is None:
        return False
    end = content.index(0, place)
    if content[place : place + 1] != b"/" or end - place < len(_RELATIVE_LIBRARIES):
        return False
    content[place:end] = _RELATIVE_LIBRARIES.ljust(end - place, b"\0")
    program.write_bytes(content)
    return True


def _copy_interpreter(python: Path, destination: Path) -> Path:
    prefix = Path(sys.base_prefix).resolve()
    for key in ("stdlib", "platstdlib"):
        library = Path(sysconfig.get_path(key, vars={"base": str(prefix), "platbase": str(prefix)}))
        target = destination / library.resolve().relative_to(prefix)
        if not target.exists():
            copy_tree(library, target, _is_left_out_of_library)
    target = destination / "bin" / python.name
    target.parent.mkdir(parents=True)
    # A real copy: its library path may be changed, and a hard link would change the original.
    shutil.copy2(python, target)
    target.chmod(0o755)
    # Built for one place and moved to another, the interpreter still names the first as LIBDIR.
    shared = sorted((prefix / "lib").glob("libpython*.so*"))
    libraries = Path(sysconfig.get_config_var("LIBDIR") or prefix / "lib")
    if not shared and libraries.is_relative_to(prefix):
        shared = sorted(libraries.glob("libpython*.so*"))
    for file in shared:
        place = destination / "lib" / file.name
        place.parent.mkdir(exist_ok=True)
        copy_file(file, place)
    if shared:
        point_libraries_to_origin(target)
    return target


def _is_left_out_of_library(path: Path) -> bool:
    name = path.name
    return name in _LEFT_OUT_OF_LIBRARY or name.startswith("config-") or name.endswith(".a")


def _copy_packages(library: Path) -> None:
    for source in _package_directories():
        copy_tree(source, library, _is_own_package)
    target = library / _PACKAGE.name
    copy_tree(_PACKAGE, target, lambda path: path.name == "__pycache__")
    compileall.compile_dir(str(target), quiet=2)


def _package_directories() -> Iterable[Path]:
    paths = dict.fromkeys(sysconfig.get_path(key) for key in ("purelib", "platlib"))
    return [Path(path) for path in paths if Path(path).is_dir()]


def _is_own_package(path: Path) -> bool:
    # The package comes from where it was imported, which for an editable install is the clone.
    return path.name == _PACKAGE.name or path.name.startswith(
        (f"__editable__.{_PACKAGE.name}", f"__editable___{_PACKAGE.name}")
    )


def _copy_scripts(source: Path, binaries: Path) -> None:
    old = {str(path).encode() for path in (Path(sys.executable), source / "python")}
    old |= {str(source / f"python3{suffix}").encode() for suffix in ("", f".{sys.version_info[1]}")}
    for path in sorted(source.iterdir()) if source.is_dir() else []:
        target = binaries / path.name
        if not path.is_file() or path.is_symlink() or target.exists():
            continue
        with path.open("rb") as file:
            first = file.readline(512)
        if first[:2] == b"#!" and first[2:].strip() in old:
            rest = path.read_bytes()[len(first) :]
            target.write_bytes(b"#!" + str(binaries / "python").encode() + b"\n" + rest)
            target.chmod(0o755)
        elif first[:4] == b"\x7fELF":
            copy_file(path, target)
    script = binaries / "pgrecall"
    script.unlink(missing_ok=True)
    script.write_text(
        f"#!{binaries / 'python'}\n"
        "import sys\n"
        "from pgrecall.cli.entry import main\n"
        "sys.exit(main())\n",
        encoding="utf-8",
    )
    script.chmod(0o755)


def _library_path_place(content: bytearray) -> int | None:
    """Offset in the file of the text of DT_RUNPATH or DT_RPATH (System V ABI, ELF-64)."""
    if content[:6] != _ELF_64_LITTLE:
        return None
    (headers,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    segments = [
        struct.unpack_from("<IIQQQQ", content, headers + size * index) for index in range(count)
    ]
    tags: dict[int, int] = {}
    for kind, _, offset, _, _, length in segments:
        if kind == _PT_DYNAMIC:
            tags = dict(struct.iter_unpack("<qQ", bytes(content[offset : offset + length])))
    relative = tags.get(_DT_RUNPATH, tags.get(_DT_RPATH))
    strings = tags.get(_DT_STRTAB)
    if relative is None or strings is None:
        return None
    for kind, _, offset, address, _, length in segments:
        if kind == _PT_LOAD and address <= strings < address + length:
            return int(strings - address + offset + relative)
    return None
