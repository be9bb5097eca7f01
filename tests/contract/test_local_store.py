"""The directory store: durability, kill -9, full and refused file systems, vanished mounts."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pgrecall.errors import (
    InvalidKeyError,
    ObjectMissingError,
    StoreAbsentError,
    StoreError,
    StoreFullError,
    StoreRefusedError,
    UnsafeStoreError,
)
from pgrecall.store.local import LocalStore

NOBODY = 65534
SOURCES = str(Path(__file__).resolve().parents[2] / "src")

# Ends the process before or after the n-th call of one function of os, then puts an object.
KILLED_CHILD = """
import os, signal, sys
sys.path.insert(0, {sources!r})
from pgrecall.store.local import LocalStore
store = LocalStore(sys.argv[1])
name, when, number = sys.argv[2], sys.argv[3], int(sys.argv[4])
real, calls = getattr(os, name), 0
def killing(*args, **options):
    global calls
    calls += 1
    if calls == number and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        return real(*args, **options)
    finally:
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
setattr(os, name, killing)
with store.writer("a/b/object") as writer:
    for _ in range(4):
        writer.write(b"x" * 250_000)
    writer.commit()
"""


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    (tmp_path / "root").mkdir()
    return LocalStore(str(tmp_path / "root"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What is asked of the file system, in order: ``fsync a/b``, ``link a/b/key`` ..."""
    found: list[str] = []
    root = str(tmp_path / "root")

    def watch(name: str, path_of: Callable[..., str]) -> None:
        real = getattr(os, name)

        def watching(*args, **options):  # type: ignore[no-untyped-def]
            path = path_of(*args)
            found.append(f"{name} {path[len(root) :] or '/'}")
            return real(*args, **options)

        monkeypatch.setattr(os, name, watching)

    def of_descriptor(descriptor: int, *_: object) -> str:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        return os.path.dirname(path) + "/(temporary)" if path.endswith(".tmp") else path

    watch("fsync", of_descriptor)
    watch("fdatasync", of_descriptor)
    watch("mkdir", lambda path, *_: path)
    watch("link", lambda _, path: path)
    return found


def test_the_order_of_a_commit(store: LocalStore, calls: list[str]) -> None:
    assert store.put("a/b/one", [b"x"]) is True
    assert calls == [
        "mkdir /a",
        "fsync /",
        "mkdir /a/b",
        "fsync /a",
        "fsync /a",  # /a/b holds nothing visible yet
        "fdatasync /a/b/(temporary)",
        "link /a/b/one",
        "fsync /a/b",
    ]


def test_one_directory_sync_where_the_directory_is_in_use(
    store: LocalStore, calls: list[str]
) -> None:
    store.put("a/b/one", [b"x"])
    calls.clear()
    assert store.put("a/b/two", [b"x"]) is True
    assert calls == ["fdatasync /a/b/(temporary)", "link /a/b/two", "fsync /a/b"]


def test_a_taken_key_is_made_durable_too(store: LocalStore, calls: list[str]) -> None:
    store.put("a/one", [b"x"])
    calls.clear()
    assert store.put("a/one", [b"y"]) is False
    assert calls[-1] == "fsync /a"


def test_a_directory_left_empty_by_a_crash_is_made_durable(
    store: LocalStore, calls: list[str]
) -> None:
    os.makedirs(f"{store.root}/a/b")
    calls.clear()
    store.put("a/b/one", [b"x"])
    assert calls.index("fsync /a") < calls.index("link /a/b/one")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("mkdir", 1), ("mkdir", 2), ("open", 1), ("open", 4), ("write", 1), ("write", 3),
        ("fdatasync", 1), ("link", 1), ("unlink", 1), ("fsync", 1), ("fsync", 2), ("fsync", 4),
    ],
)  # fmt: skip
def test_kill_at_any_point_leaves_all_or_nothing(
    store: LocalStore, name: str, number: int, when: str
) -> None:
    child = subprocess.run(
        [
            sys.executable, "-c", KILLED_CHILD.format(sources=SOURCES),
            store.root, name, when, str(number),
        ],
        capture_output=True, check=False,
    )  # fmt: skip
    assert child.returncode == -signal.SIGKILL, child.stderr
    content = b"x" * 1_000_000
    found = [info.key for info in store.list("")]
    assert found in ([], ["a/b/object"])
    assert store.children("") == (["a/"] if found else [])
    if found:
        assert store.read("a/b/object") == content
    else:
        assert store.head("a/b/object") is None
    was_linked = name in {"unlink", "fsync"} and (name, number) not in {("fsync", 1), ("fsync", 2)}
    assert bool(found) == (was_linked or (name, when) == ("link", "after"))
    assert store.put("a/b/object", [content]) is not bool(found)
    assert store.read("a/b/object") == content
    for leftover in list(store.leftovers()):
        assert leftover.size <= len(content)
        store.remove_leftover(leftover)
    assert _files(store) == ["a/b/object"]


def test_leftovers_are_found_and_nothing_else(store: LocalStore) -> None:
    store.put("a/object", [b"x"])
    writer = store.writer("a/other")
    writer.write(b"12345")
    ((key, size),) = [(info.key, info.size) for info in store.leftovers()]
    assert key.startswith("a/.other.") and size == 5
    writer.discard()
    assert list(store.leftovers()) == []
    (info,) = store.list("a/object")
    with pytest.raises(StoreError, match="not a temporary file"):
        store.remove_leftover(info)


def test_a_failed_put_leaves_no_file(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("write", "fdatasync", "link"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, _failing(errno.EIO))
            with pytest.raises(StoreError) as caught:
                store.put("a/object", [b"x"])
            assert caught.value.retryable
            assert not isinstance(caught.value, ObjectMissingError)
        assert _files(store) == []
    assert store.put("a/object", [b"x"]) is True


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, StoreFullError),
        (errno.EDQUOT, StoreFullError),
        (errno.EROFS, StoreRefusedError),
        (errno.EACCES, StoreRefusedError),
        (errno.ESTALE, StoreError),
    ],
)
def test_errors_of_the_file_system_are_told_apart(
    store: LocalStore,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    expected: type[StoreError],
) -> None:
    monkeypatch.setattr(os, "fdatasync", _failing(number))
    with pytest.raises(StoreError) as caught:
        store.put("a/object", [b"x"])
    assert type(caught.value) is expected
    assert "a/object" in str(caught.value)


def test_a_write_that_failed_cannot_be_committed(store: LocalStore) -> None:
    writer = store.writer("a/object")
    writer.write(b"first half")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", _failing(errno.ENOSPC))
        with pytest.raises(StoreFullError):
            writer.write(b"second half")
    with pytest.raises(ValueError, match="discarded"):
        writer.commit()
    assert _files(store) == []


def test_a_file_that_may_not_grow(store: LocalStore) -> None:
    """The limit of the process stands for a disk that is full: EFBIG from a real write."""
    script = f"""
import resource, sys
sys.path.insert(0, {SOURCES!r})
from pgrecall.errors import StoreFullError
from pgrecall.store.local import LocalStore
store = LocalStore(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    store.put("a/big", [b"x" * 600_000, b"y" * 600_000])
except StoreFullError as error:
    print("full:", error)
"""
    child = subprocess.run(
        [sys.executable, "-c", script, store.root], capture_output=True, text=True, check=True
    )
    assert child.stdout.startswith("full: cannot write")
    assert _files(store) == []


@pytest.fixture
def readable_root() -> Iterator[Path]:
    """A directory that any user may reach, as tmp_path is not."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def test_a_store_that_may_not_be_written_or_read(readable_root: Path) -> None:
    store = LocalStore(str(readable_root))
    store.put("open/object", [b"x"])
    store.put("closed/object", [b"x"])
    for path in (readable_root / "open" / "object", readable_root / "open"):
        path.chmod(0o555)
    (readable_root / "closed").chmod(0o000)
    script = f"""
import os, sys
sys.path.insert(0, {SOURCES!r})
from pgrecall.errors import StoreRefusedError
from pgrecall.store.local import LocalStore
store = LocalStore(sys.argv[1])
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({NOBODY})
    os.setuid({NOBODY})
assert store.read("open/object") == b"x"
attempts = {{
    "put": lambda: store.put("open/new", [b"x"]),
    "delete": lambda: store.delete("open/object"),
    "read": lambda: store.read("closed/object"),
    "head": lambda: store.head("closed/object"),
    "list": lambda: list(store.list("")),
    "list below": lambda: list(store.list("closed/")),
    "children": lambda: store.children("closed/"),
}}
for name, attempt in attempts.items():
    try:
        print(name, "answered", attempt())
    except StoreRefusedError as error:
        assert error.hint
        print(name, "refused")
"""
    try:
        child = subprocess.run(
            [sys.executable, "-c", script, str(readable_root)],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        for name in ("open", "closed"):
            (readable_root / name).chmod(0o755)
    assert child.stderr == ""
    assert child.stdout.splitlines() == [
        f"{name} refused"
        for name in ("put", "delete", "read", "head", "list", "list below", "children")
    ]


def test_without_its_root_nothing_is_absent(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "missing", tmp_path / "missing" / "deep", tmp_path / "file"):
        store = LocalStore(str(path))
        for call in (
            lambda: store.head("a/b"),  # noqa: B023
            lambda: store.read("a/b"),  # noqa: B023
            lambda: store.reader("a"),  # noqa: B023
            lambda: list(store.list("")),  # noqa: B023
            lambda: list(store.list("a/b")),  # noqa: B023
            lambda: store.children(""),  # noqa: B023
            lambda: store.children("a/"),  # noqa: B023
            lambda: store.delete("a/b"),  # noqa: B023
        ):
            with pytest.raises(StoreAbsentError):
                call()
        for key in ("a", "a/b"):
            with pytest.raises(StoreError) as caught:
                store.put(key, [b"x"])
            assert not isinstance(caught.value, ObjectMissingError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_create_root(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path / "a" / "b"))
    store.create_root()
    store.create_root()
    assert list(store.list("")) == []
    with pytest.raises(StoreError):
        LocalStore("/proc/version/below").create_root()


def test_files_of_others_are_not_seen(store: LocalStore) -> None:
    root = Path(store.root)
    store.put("a/object", [b"x"])
    (root / "lost+found").mkdir()
    (root / "lost+found" / "found").write_bytes(b"")
    (root / "a" / "name with space").write_bytes(b"")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "object").write_bytes(b"")
    (root / "empty" / "deep").mkdir(parents=True)
    os.mkfifo(root / "pipe")
    assert [info.key for info in store.list("")] == ["a/object"]
    assert store.children("a/") == ["object"]
    assert store.head("pipe") is None
    assert "empty/" not in store.children("")


def test_a_file_in_the_way_of_a_directory_is_an_error(store: LocalStore) -> None:
    store.put("a/object", [b"x"])
    for key in ("a/object/below", "a/object/below/deeper", "a"):
        with pytest.raises(StoreError) as caught:
            store.put(key, [b"x"])
        assert not isinstance(caught.value, ObjectMissingError)
    assert _files(store) == ["a/object"]


def test_keys_cannot_leave_the_root(store: LocalStore) -> None:
    outside = Path(store.root).parent / "outside"
    outside.write_bytes(b"secret")
    for key in ("../outside", "a/../../outside", str(outside)):
        with pytest.raises(InvalidKeyError):
            store.read(key)
        with pytest.raises(InvalidKeyError):
            store.delete(key)
    assert outside.exists()


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EIO])
def test_a_link_that_worked_and_was_reported_as_failed(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """NFS: the answer was lost, the client asked again and was told that the name is taken."""
    real = os.link

    def lost_answer(source: str, target: str) -> None:
        real(source, target)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", lost_answer)
    assert store.put("a/object", [b"x"]) is True
    assert store.read("a/object") == b"x"
    assert _files(store) == ["a/object"]


def test_a_file_system_without_links_is_unsafe(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", _failing(errno.EOPNOTSUPP))
    with pytest.raises(UnsafeStoreError, match="link"):
        store.put("a/object", [b"x"])


def test_directories_pruned_under_a_writer_are_made_again(store: LocalStore) -> None:
    for _ in range(3):
        store.put("a/b/c/object", [b"x"])
        store.delete("a/b/c/object")
        assert not os.path.exists(f"{store.root}/a")


def test_no_file_descriptor_is_lost(store: LocalStore) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        store.put(f"a/{number}", [b"x"])
        store.put(f"a/{number}", [b"x"])
        store.read(f"a/{number}")
        store.writer("b").discard()
        with pytest.raises(ObjectMissingError):
            store.reader("a")
    list(store.list(""))
    assert len(os.listdir("/proc/self/fd")) == before


def _files(store: LocalStore) -> list[str]:
    """Every file below the root, temporary or not."""
    root = Path(store.root)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def _failing(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail
