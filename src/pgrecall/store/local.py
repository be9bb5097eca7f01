"""A store in a directory, on a local file system or NFS.

Commit of an object (docs/stores.md says what is relied upon where):

1. its bytes go to a temporary file in the target directory, ``.<name>.<pid>-<random>.tmp``,
2. fdatasync of that file,
3. link(2) to the final name, which fails if the name is taken: nothing is ever replaced,
4. unlink of the temporary name, fsync of the directory.

A directory is made durable in its parent before anything becomes visible in it.
So a directory that holds a visible entry is durable already, whoever made it and
however that process ended; only one that holds nothing yet costs a second fsync.

Light: imported for every WAL segment that PostgreSQL archives.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from datetime import datetime

from pgrecall.errors import ObjectMissingError, StoreError
from pgrecall.store.base import SUITE_NONE, Buffer, ObjectInfo
from pgrecall.store.directories import list_directory
from pgrecall.store.keys import check_key, check_parent, check_prefix, is_key_part
from pgrecall.store.local_files import (
    LocalReader,
    LocalWriter,
    has_visible_entry,
    make_directory,
    read_failure,
    require_root,
    sync_directory,
    write_failure,
)

PACK_BYTES = 128 << 20
TEMPORARY_SUFFIX = ".tmp"

_FILE_MODE = 0o640
# NAME_MAX less the dot, pid, random and suffix of a temporary name.
_TEMPORARY_STEM_LENGTH = 200
# A directory that another process prunes while we fill it is made anew; more often is no accident.
_MAX_DIRECTORY_TRIES = 100


class LocalStore:
    """Objects as files below ``root``, an absolute path of an existing directory.

    Files whose name begins with a dot or holds a character that no key has are
    not ours and not seen, neither is ``lost+found`` in the root.
    """

    suite = SUITE_NONE

    def __init__(self, root: str, *, pack_bytes: int = PACK_BYTES) -> None:
        self.root = os.path.abspath(root)
        self.name = self.root
        self.pack_bytes = pack_bytes
        self.reads_whole = False

    def create_root(self) -> None:
        """Make the root directory, and what is missing above it, durably; existing is success."""
        missing = []
        path = self.root
        while not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        try:
            for directory in reversed(missing):
                make_directory(directory)
        except OSError as error:
            raise write_failure(error, self.root) from error

    def put(self, key: str, parts: Sequence[Buffer]) -> bool:
        with self.writer(key) as writer:
            for part in parts:
                writer.write(part)
            return writer.commit()

    def writer(self, key: str) -> LocalWriter:
        path = self._path(check_key(key))
        directory, _, stem = path.rpartition("/")
        name = f".{stem[:_TEMPORARY_STEM_LENGTH]}.{os.getpid()}-{os.urandom(6).hex()}"
        try:
            temporary, descriptor = self._create(directory, name + TEMPORARY_SUFFIX)
            return LocalWriter(path, temporary, descriptor)
        except OSError as error:
            raise write_failure(error, path) from error
        except BaseException:  # a signal that ends the run, which nobody else would clean up after
            with contextlib.suppress(OSError):
                os.unlink(f"{directory}/{name}{TEMPORARY_SUFFIX}")
            raise

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        with self.reader(key) as reader:
            end = reader.size if length is None else min(start + length, reader.size)
            return reader.read(start, end - start) if end > start else b""

    def reader(self, key: str) -> LocalReader:
        path = self._path(check_key(key))
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise read_failure(error, path, self.root) from error
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise FileNotFoundError(errno.ENOENT, "not a regular file", path)
        except OSError as error:
            os.close(descriptor)
            raise read_failure(error, path, self.root) from error
        return LocalReader(self.root, path, descriptor, found.st_size)

    def head(self, key: str) -> ObjectInfo | None:
        path = self._path(check_key(key))
        try:
            found = os.stat(path)
        except OSError as error:
            translated = read_failure(error, path, self.root)
            if isinstance(translated, ObjectMissingError):
                return None
            raise translated from error
        return _info(key, found) if stat.S_ISREG(found.st_mode) else None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        parent, _, beginning = check_prefix(prefix).rpartition("/")
        return self._walk(parent + "/" if parent else "", beginning)

    def children(self, prefix: str) -> Sequence[str]:
        check_parent(prefix)
        return [
            name
            for name in self._names(prefix)
            if name[-1] != "/" or self._holds_any(prefix + name)
        ]

    def delete(self, key: str) -> None:
        path = self._path(check_key(key))
        directory = os.path.dirname(path)
        try:
            os.unlink(path)
            sync_directory(directory)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            require_root(self.root)
        except OSError as error:
            raise write_failure(error, path) from error
        self._prune(directory)

    def leftovers(self) -> Iterator[ObjectInfo]:
        """Temporary files of writers that were killed, or that are still at work.

        ``key`` is the path below the root and no valid key; ``stored_at`` the
        time of the last write: an old one belongs to nobody.
        """
        yield from self._leftovers("")

    def clock(self) -> datetime:
        """What the file system takes for the present: ``stored_at`` is of the same clock.

        That of an NFS server may differ from this host's, and a host's clock may
        jump. Writes an empty temporary file in the root. Raises StoreError.
        """
        name = f".clock.{os.getpid()}-{os.urandom(6).hex()}"
        try:
            temporary, descriptor = self._create(self.root, name + TEMPORARY_SUFFIX)
            try:
                return _info(name, os.fstat(descriptor)).stored_at
            finally:
                os.close(descriptor)
                os.unlink(temporary)
        except OSError as error:
            raise write_failure(error, self.root) from error

    def remove_leftover(self, leftover: ObjectInfo) -> None:
        """Remove one of ``leftovers()``; one that is gone already is success."""
        name = leftover.key.rpartition("/")[2]
        if not (name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)):
            raise StoreError(f"{leftover.key} in {self.name} is not a temporary file")
        path = self._path(leftover.key)
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise write_failure(error, path) from error
        self._prune(os.path.dirname(path))

    # --- directories -------------------------------------------------------

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}"

    def _create(self, directory: str, name: str) -> tuple[str, int]:
        """Open a new temporary file in a directory that is durable in its parent."""
        temporary = f"{directory}/{name}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        for _ in range(_MAX_DIRECTORY_TRIES):
            try:
                descriptor = os.open(temporary, flags, _FILE_MODE)
                break
            except FileNotFoundError:
                self._make_directories(directory)
        else:
            raise StoreError(
                f"{directory} is removed again and again while {name} is written to it",
                hint="something else removes directories below the store",
            )
        try:
            # Our file keeps the directory from being removed; see the module's docstring.
            if directory != self.root and not has_visible_entry(directory):
                sync_directory(os.path.dirname(directory))
        except BaseException:
            os.close(descriptor)
            os.unlink(temporary)
            raise
        return temporary, descriptor

    def _make_directories(self, directory: str) -> None:
        """Make what is missing between the root and ``directory``, each durable before the next."""
        missing = []
        while directory != self.root and not os.path.isdir(directory):
            missing.append(directory)
            directory = os.path.dirname(directory)
        if directory == self.root:
            require_root(self.root)
        elif missing and not has_visible_entry(directory):
            sync_directory(os.path.dirname(directory))
        for path in reversed(missing):
            try:
                make_directory(path)
            except FileNotFoundError:
                return  # pruned by another process meanwhile: the caller tries again

    def _prune(self, directory: str) -> None:
        """Remove directories that a deletion left empty, up to the root."""
        while directory != self.root:
            try:
                os.rmdir(directory)
            except OSError:
                return  # not empty, in use, or gone: nothing that anybody needs to know
            directory = os.path.dirname(directory)

    # --- listing -------------------------------------------------------------

    def _opened(self, parent: str) -> int | None:
        """A descriptor of the directory ``parent``; None: there is none below our root."""
        path = self._path(parent)
        try:
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            translated = read_failure(error, path, self.root)
            if isinstance(translated, ObjectMissingError):
                return None
            raise translated from error

    def _entries(self, parent: str, directory: int) -> Sequence[str]:
        """Visible names in an open directory by key order; a directory's name ends in a slash."""
        found = []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    name = entry.name
                    if not is_key_part(name) or (not parent and name == "lost+found"):
                        continue
                    # With the slash, a directory sorts where the keys below it belong.
                    found.append(name + "/" if entry.is_dir() else name)
        except OSError as error:
            raise read_failure(error, self._path(parent), self.root) from error
        found.sort()
        return found

    def _names(self, parent: str) -> Sequence[str]:
        """As ``_entries``; nothing when there is no such directory."""
        directory = self._opened(parent)
        if directory is None:
            return ()
        try:
            return self._entries(parent, directory)
        finally:
            os.close(directory)

    def _walk(self, parent: str, beginning: str) -> Iterator[ObjectInfo]:
        directory = self._opened(parent)
        if directory is None:
            return  # nothing begins with this
        try:
            found = list_directory(directory, beginning)
        except OSError as error:
            path = self._path(parent + (error.filename or ""))
            raise read_failure(error, path, self.root) from error
        finally:
            os.close(directory)
        found.sort()
        for name, size, modified in found:
            if size >= 0:
                yield ObjectInfo(parent + name, size, modified)
            elif parent or name != "lost+found/":
                yield from self._walk(parent + name, "")

    def _holds_any(self, parent: str) -> bool:
        """Whether an object lies below ``parent``; reads no further than to the first."""
        directory = self._opened(parent)
        if directory is None:
            return False
        below = []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if not is_key_part(entry.name):
                        continue
                    if entry.is_file():
                        return True
                    if entry.is_dir():
                        below.append(f"{parent}{entry.name}/")
        except OSError as error:
            raise read_failure(error, self._path(parent), self.root) from error
        finally:
            os.close(directory)
        return any(self._holds_any(one) for one in below)

    def _leftovers(self, parent: str) -> Iterator[ObjectInfo]:
        directory = self._opened(parent)
        if directory is None:
            return
        path = self._path(parent)
        below, names = [], []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    name = entry.name
                    if name[0] == ".":
                        if name.endswith(TEMPORARY_SUFFIX):
                            names.append(name)
                    elif entry.is_dir() and is_key_part(name):
                        below.append(name)
        except OSError as error:
            raise read_failure(error, path, self.root) from error
        finally:
            os.close(directory)
        for name in sorted(below):
            if parent or name != "lost+found":
                yield from self._leftovers(f"{parent}{name}/")
        for name in sorted(names):
            with contextlib.suppress(FileNotFoundError):  # committed or discarded meanwhile
                yield _info(parent + name, os.stat(path + name))


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, found.st_size, found.st_mtime)
