"""Restores that are killed, ended, or fed damaged bytes: nothing half-done is ever started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pgrecall
from pgrecall.errors import (
    CorruptObjectError,
    DestinationError,
    PgrecallError,
    RecoveryError,
    RepositoryError,
)
from pgrecall.model.targets import Immediate, Latest, RecoveryTarget, ToXid
from pgrecall.model.wal_files import WalFile
from pgrecall.postgres.instance import running_postmaster
from pgrecall.repository import layout
from pgrecall.restore.destination import UNFINISHED_MARKER
from pgrecall.system.faults import VARIABLE
from tests.support.oracle import Oracle
from tests.support.postgresql import Installation, PostgresServer, ServerFactory, Templates
from tests.support.product import Product

POINTS = (
    "restore.marked",
    "restore.pack",
    "restore.files-written",
    "restore.configured",
    "restore.synced",
    "restore.control-written",
)


class Story:
    """A server with a tablespace, one backup, and three segments behind it."""

    def __init__(self, product: Product, oracle: Oracle) -> None:
        self.product = product
        self.oracle = oracle
        server = product.server
        self.space = product.directory / "space"
        self.space.mkdir()
        server.sql(f"CREATE TABLESPACE apart LOCATION '{self.space}'")
        server.sql("CREATE TABLE t TABLESPACE apart AS SELECT generate_series(1, 1000) AS number")
        self.backup = product.backup()
        self.segments = []
        for _ in range(3):
            oracle.write(2)
            self.segments.append(product.switch())
        server.stop()
        self.whole = product.objects()
        self.places = 0

    def key(self, name: str) -> Path:
        """The object of a file of the backup, or of the WAL archive."""
        if name in {"repository.json"}:
            return self.product.path_of(name)
        if name.startswith("generation"):
            return self.product.path_of(layout.generation_key("main", 1))
        if len(name) == 24 or name.endswith(".history"):
            return self.product.path_of(layout.wal_key("main", 1, WalFile(name)))
        prefix = layout.complete_key("main", self.backup.backup_id).rpartition("/")[0]
        return self.product.path_of(f"{prefix}/{name}")

    def mapping(self, copy: Path) -> dict[str, str]:
        return {"apart": str(copy) + "-space"}

    def restore(self, copy: Path, target: RecoveryTarget, **wishes: bool) -> None:
        """Restore and start; what it starts must hold everything, and is ended again."""
        mapping = self.mapping(copy)
        self.product.restore(copy, target, start=True, tablespace_map=mapping, **wishes)
        server = self.product.connected(copy)
        assert server.value("SELECT count(*) FROM t") == 1000
        self.product.end(copy)


@pytest.fixture(scope="module")
def story(
    pg_templates: Templates,
    installations: dict[int, Installation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Story]:
    directory = tmp_path_factory.mktemp("faults")
    factory = ServerFactory(pg_templates, installations[18], directory)
    try:
        product = Product.start(factory, directory, track_commit_timestamp="on", autovacuum="off")
        with Oracle(product.server) as oracle:
            made = Story(product, oracle)
        yield made
        product.close()
    finally:
        factory.destroy()


@pytest.fixture
def copy(story: Story, tmp_path: Path) -> Iterator[Path]:
    """A destination; afterwards the repository is as it was."""
    yield tmp_path / "copy"
    story.product.end(tmp_path / "copy")
    assert story.product.objects() == story.whole


# --- interrupted ------------------------------------------------------------------------


@pytest.mark.parametrize("point", POINTS)
def test_killed_at(story: Story, copy: Path, point: str) -> None:
    """PostgreSQL cannot start on the remains; the next restore clears them and works."""
    space = story.mapping(copy)["apart"]
    words = ["restore", "--target-dir", str(copy), "--tablespace-map", f"apart={space}"]
    finished = story.product.cli(*words, environment={VARIABLE: point})
    assert finished.returncode == -signal.SIGKILL, finished.stderr
    assert (copy / UNFINISHED_MARKER).exists()
    if point != "restore.control-written":
        assert not (copy / "global" / "pg_control").exists()
        assert not starts(story.product.server, copy)
    story.restore(copy, Latest())
    assert not (copy / UNFINISHED_MARKER).exists()
    assert sorted(path.name for path in Path(space).iterdir()) == sorted(
        path.name for path in story.space.iterdir()
    )


def starts(server: PostgresServer, pgdata: Path) -> bool:
    """Whether PostgreSQL starts on a directory."""
    argv = [str(server.installation.program("postgres")), "-D", str(pgdata), "-k", server.host]
    try:
        finished = subprocess.run(argv, capture_output=True, check=False, timeout=10)
    except subprocess.TimeoutExpired:
        return True
    return finished.returncode == 0


def test_remains_that_were_started_are_kept(story: Story, copy: Path) -> None:
    """Killed after the last byte: complete, and somebody may have gone on to work with it."""
    space = story.mapping(copy)["apart"]
    words = ["restore", "--target-dir", str(copy), "--tablespace-map", f"apart={space}"]
    story.product.cli(*words, environment={VARIABLE: "restore.control-written"})
    (copy / "backup_label").rename(copy / "backup_label.old")
    with pytest.raises(DestinationError, match="was complete"):
        story.product.restore(copy, Latest(), tablespace_map={"apart": space})
    assert (copy / "global" / "pg_control").exists()


def test_remains_do_not_open_other_directories(story: Story, copy: Path, tmp_path: Path) -> None:
    """After an interrupted restore, a tablespace that now goes elsewhere needs an empty place."""
    words = ["restore", "--target-dir", str(copy)]
    words += ["--tablespace-map", f"apart={story.mapping(copy)['apart']}"]
    story.product.cli(*words, environment={VARIABLE: "restore.files-written"})
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("keep me")
    with pytest.raises(DestinationError, match=r"letter\.txt"):
        story.product.restore(copy, Latest(), tablespace_map={"apart": str(other)})
    assert (other / "letter.txt").read_text() == "keep me"


def test_ended_by_a_signal(story: Story, copy: Path) -> None:
    """SIGTERM while files are written: the destination is empty again."""
    space = Path(story.mapping(copy)["apart"])
    words = ["restore", "--target-dir", str(copy), "--tablespace-map", f"apart={space}"]
    words += ["--start", "--workers", "1"]
    process = subprocess.Popen(
        story.product.command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    marker = copy / UNFINISHED_MARKER
    story.product.server.wait_until(
        lambda: marker.exists() or process.poll() is not None, "it writes"
    )
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 62, errors
    assert b"SIGTERM" in errors
    assert list(copy.iterdir()) == []
    assert not space.exists() or list(space.iterdir()) == []
    assert running_postmaster(copy) is None


# --- damaged ------------------------------------------------------------------------------


def flipped(path: Path, place: float | int) -> Callable[[], None]:
    """Flip a bit of a file (``place``: a fraction, or an offset); returns what mends it."""
    content = path.read_bytes()
    offset = int(len(content) * place) if isinstance(place, float) else place % len(content)
    damaged = bytearray(content)
    damaged[offset] ^= 0x10
    path.chmod(0o600)
    path.write_bytes(damaged)

    def mend() -> None:
        path.write_bytes(content)

    return mend


@pytest.mark.parametrize(
    ("name", "place"),
    [
        pytest.param("pack-0000", 0.5, id="pack-frame"),
        pytest.param("pack-0000", 40, id="pack-header"),
        pytest.param("pack-0000", 2, id="pack-magic"),
        pytest.param("pack-0000", -200, id="pack-footer"),
        pytest.param("pack-0000", -20, id="pack-trailer"),
        pytest.param("manifest", 0.5, id="manifest-root"),
        pytest.param("manifest-0000", 0.5, id="manifest-part-0"),
        pytest.param("manifest-0001", 0.5, id="manifest-part-1"),
        pytest.param("complete.json", 0.3, id="completion"),
        pytest.param("complete.json", 0.7, id="completion-again"),
    ],
)
def test_damage_in_a_backup_is_found(
    story: Story, copy: Path, name: str, place: float | int
) -> None:
    """It is named, and nothing stays in the destination."""
    mend = flipped(story.key(name), place)
    try:
        with pytest.raises(PgrecallError) as caught:
            story.restore(copy, Latest())
        assert isinstance(caught.value, CorruptObjectError | RepositoryError), repr(caught.value)
        assert not isinstance(caught.value, RecoveryError)
        assert (
            name.removesuffix(".json") in caught.value.message or "backup" in caught.value.message
        )
        assert not copy.exists() or list(copy.iterdir()) == []
        assert running_postmaster(copy) is None
    finally:
        mend()


@pytest.mark.parametrize("name", ["repository.json", "generation"])
def test_damage_in_a_record_is_found(story: Story, copy: Path, name: str) -> None:
    """Wherever the bit is. Fields that restore does not use are covered as well."""
    path = story.key(name)
    size = path.stat().st_size
    for offset in range(0, size, max(1, size // 12)):
        mend = flipped(path, offset)
        try:
            with pytest.raises(PgrecallError):
                story.product.restore(copy, Immediate(), tablespace_map=story.mapping(copy))
            assert not copy.exists()
        finally:
            mend()


def test_a_missing_or_short_pack_is_found_before_anything_is_written(
    story: Story, copy: Path
) -> None:
    path = story.key("pack-0000")
    content = path.read_bytes()
    for damage in (path.unlink, lambda: path.write_bytes(content[:-1])):
        damage()
        try:
            with pytest.raises(CorruptObjectError, match="pack-0000"):
                story.restore(copy, Latest())
            assert not copy.exists()
        finally:
            path.write_bytes(content)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(30, id="header"),
        pytest.param(0.1, id="frame"),
        pytest.param(-10, id="trailer"),
        pytest.param(-60, id="index"),
    ],
)
@pytest.mark.parametrize("verify", [False, True])
def test_damage_in_wal_never_promotes(
    story: Story, copy: Path, place: float | int, verify: bool
) -> None:
    """Found when it is fetched: recovery fails and the server is down, nothing was promoted.
    With --verify-wal it is found before a byte is written."""
    name = story.segments[1]
    mend = flipped(story.key(name), place)
    try:
        with pytest.raises(PgrecallError) as caught:
            story.restore(copy, Latest(), verify_wal=verify)
        assert running_postmaster(copy) is None
        if verify:
            assert name in caught.value.message
            assert not copy.exists()
        elif isinstance(caught.value, RecoveryError):
            assert name in caught.value.message
            assert not (copy / "pg_wal" / "00000002.history").exists()
            assert (copy / "recovery.signal").exists()
    finally:
        mend()


# --- a restore_command that crashes ------------------------------------------------------------

CRASHES = {
    "exit-1": "import os; os._exit(1)",
    "import-error": "raise ImportError('no module named obstore')",
    "exit-200": "import os; os._exit(200)",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "terminated": "import os, signal; os.kill(os.getpid(), signal.SIGABRT)",
}


@pytest.mark.parametrize("crash", CRASHES)
def test_a_crash_of_fetch_never_promotes(
    story: Story, copy: Path, tmp_path: Path, crash: str
) -> None:
    """Fact 3: whatever kills `pgrecall wal fetch`, the server ends up down, not truncated."""
    story.product.restore(copy, Latest(), tablespace_map=story.mapping(copy))
    # What fetches ahead would deliver the segment before anybody asks for it, and nothing crash.
    configuration = copy / "postgresql.auto.conf"
    text = configuration.read_text()
    assert " --ahead " in text
    configuration.write_text(text.replace(" --ahead ", " "))
    broken = tmp_path / "sitecustomize.py"
    broken.write_text(
        "import sys\n"
        f"if 'fetch' in sys.orig_argv and {story.segments[1]!r} in sys.orig_argv:\n"
        f"    {CRASHES[crash]}\n"
    )
    # An error in sitecustomize is shown and passed over; in the package's path it is not.
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    if crash == "import-error":
        broken.unlink()
        package = tmp_path / "pgrecall"
        package.mkdir()
        (package / "__init__.py").write_text(
            "import sys\n"
            f"if {story.segments[1]!r} in sys.argv:\n    {CRASHES[crash]}\n"
            f"__path__.append({str(source_package())!r})\n"
        )
    server = PostgresServer(story.product.server.installation, copy)
    argv = [str(server.installation.program("postgres")), "-D", str(copy)]
    argv += ["-p", str(server.port), "-k", server.host]
    try:
        finished = subprocess.run(
            argv, env=environment, capture_output=True, check=False, timeout=60
        )
        assert finished.returncode != 0
        log = finished.stderr.decode(errors="replace")
        assert story.segments[0] in log
        assert f'could not restore file "{story.segments[1]}"' in log
        assert "selected new timeline" not in log
        assert (copy / "recovery.signal").exists()
    finally:
        shutil.rmtree(server.host)
    # With a whole program again, the same directory recovers to the end.
    server = PostgresServer(story.product.server.installation, copy)
    try:
        server.start()
        server.wait_until(lambda: not server.value("SELECT pg_is_in_recovery()"), "the end")
        assert story.oracle.found_on(server) == [one.number for one in story.oracle.acknowledged]
    finally:
        server.destroy()


def source_package() -> Path:
    return Path(pgrecall.__file__).parent


def test_a_damaged_backup_is_not_passed_over_in_silence(story: Story, copy: Path) -> None:
    """With two backups and a damaged record of the newer, the older serves, and the plan warns."""
    source = story.key("complete.json").parent
    newer = source.with_name("b-20991231T235959Z-zzzz")
    shutil.copytree(source, newer)
    try:
        result = story.product.restore(
            copy, ToXid(story.oracle.acknowledged[-1].xid), tablespace_map=story.mapping(copy)
        )
        assert result.plan.backup_id == story.backup.backup_id
        assert [finding.subject for finding in result.plan.findings] == [newer.name]
    finally:
        shutil.rmtree(newer)


def test_the_report_is_json(story: Story, copy: Path) -> None:
    space = story.mapping(copy)["apart"]
    words = ["restore", "--target-dir", str(copy), "--tablespace-map", f"apart={space}", "--json"]
    finished = story.product.cli(*words, "--immediate", "--start", "--action", "pause")
    report = json.loads(finished.stdout)
    assert report["schema"] == "pgrecall/restore/1"
    assert report["started"]["state"] == "paused"
    shown = json.loads(
        story.product.cli("recovery", "promote", "--target-dir", str(copy), "--json").stdout
    )
    assert shown["status"]["state"] == "open"
