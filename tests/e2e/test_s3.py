"""The main job on a real S3 server, and what becomes of it when that server goes away."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pgrecall.app import opened
from pgrecall.errors import StoreError, StoreRefusedError, VerifyFailedError
from pgrecall.further_errors import ObjectFrozenError
from pgrecall.repository import layout
from pgrecall.repository.identity import latest_generation
from pgrecall.repository.pack_sink import COMMITTERS
from pgrecall.repository.wal_archive import WalArchive
from pgrecall.settings import RepositorySettings
from pgrecall.settings.template import toml_value
from pgrecall.store.base import ObjectWriter, Store
from pgrecall.store.opening import open_store
from tests.support.certificates import Certificates
from tests.support.object_servers import ACCESS_KEY, SECRET_KEY, S3Server, s3_server
from tests.support.postgresql import ServerFactory
from tests.support.product import SERVER, Product
from tests.support.recording_proxy import RecordingProxy, recording_proxy
from tests.support.s3_admin import administer
from tests.support.s3_fixtures import S3Settings


def with_secret_files(settings: RepositorySettings, directory: Path) -> RepositorySettings:
    """Credentials in files, because PostgreSQL's environment holds no variables of ours."""
    directory.mkdir(exist_ok=True)
    (directory / "access").write_text(ACCESS_KEY + "\n")
    (directory / "secret").write_text(SECRET_KEY + "\n")
    return settings.replace(
        access_key=f"file:{directory / 'access'}", secret_key=f"file:{directory / 'secret'}"
    )


def table(settings: RepositorySettings) -> str:
    """The table of pgrecall.toml that says the same."""
    keys = [
        f"{key} = {toml_value(getattr(settings, key))}\n"
        for key, field in settings.fields.items()
        if field.is_key and getattr(settings, key) != field.default
    ]
    return f"[repositories.{settings.name}]\n" + "".join(keys)


class S3Product(Product):
    """A server whose only repository is in S3."""

    in_s3: RepositorySettings

    def _configure(self) -> None:
        self.repository = self.in_s3
        super()._configure()
        text = self.config.read_text(encoding="utf-8")
        self.write_config(text[: text.index("[repositories.")])

    def write_config(self, front: str = "") -> None:
        """Write the configuration with the repository as it is now."""
        if not front:
            text = self.config.read_text(encoding="utf-8")
            front = text[: text.index("[repositories.")]
        self.config.write_text(front + table(self.repository), encoding="utf-8")

    @property
    def secrets(self) -> Path:
        return Path(self.repository.secret_key.removeprefix("file:")).parent

    def objects(self) -> dict[str, str]:
        """Size and time of every object by its key.

        Left out is what runs write of themselves: journal, leases, how far verify came.
        """
        store = open_store(self.repository, {}, is_anchored=False)
        found = {info.key: f"{info.size} {info.stored_at}" for info in store.list("")}
        of_runs = {"runs", "chains", "leases", "verified"}
        return {key: facts for key, facts in found.items() if not of_runs & set(key.split("/"))}

    def is_secret_kept(self, *texts: str) -> bool:
        """Whether none of the texts, nor what PostgreSQL logged and was told, holds the secret."""
        told = self.config.read_text() + str(self.server.sql("SELECT * FROM pg_settings"))
        return not any(SECRET_KEY in text for text in (*texts, told, self.server.log))


MakeProduct = Callable[..., S3Product]


@pytest.fixture
def product_in(pg_factory: ServerFactory, tmp_path: Path) -> Iterator[MakeProduct]:
    """``product_in(settings)``: a server that archives into that repository."""
    made: list[S3Product] = []

    def make(settings: RepositorySettings, **postgresql: Any) -> S3Product:
        kind = type("InOne", (S3Product,), {"in_s3": with_secret_files(settings, tmp_path / "k")})
        product = kind.start(pg_factory, tmp_path, **{"wal_keep_size": "64MB", **postgresql})
        assert isinstance(product, S3Product)
        made.append(product)
        return product

    try:
        yield make
    finally:
        for product in made:
            product.close()


@pytest.fixture
def own_s3(tmp_path: Path) -> Iterator[S3Server]:
    """A server that a test may stop and start."""
    with s3_server(tmp_path / "own-s3") as server:
        yield server


@pytest.fixture
def proxy(own_s3: S3Server) -> Iterator[RecordingProxy]:
    """In front of ``own_s3``: tells when something is asked for."""
    with recording_proxy(own_s3.endpoint) as proxy:
        yield proxy


def stops_at(server: S3Server, proxy: RecordingProxy, *words: str) -> threading.Event:
    """Stop the server at the first request with all the words in it, which gets no answer."""
    stopped = threading.Event()

    def before(request: str) -> bool:
        if all(word in request for word in words) and not stopped.is_set():
            stopped.set()
            server.process.kill()  # type: ignore[union-attr]
            server.stop()
        return not stopped.is_set()

    proxy.before = before
    return stopped


def starts_again(server: S3Server, proxy: RecordingProxy) -> None:
    server.start()
    proxy.before = lambda request: True


# --- the main job ------------------------------------------------------------------------


def test_the_main_job_over_tls(
    product_in: MakeProduct,
    s3: S3Server,
    s3_settings: S3Settings,
    certificates: Certificates,
    tmp_path: Path,
) -> None:
    """Path style, TLS with an authority of our own, and secrets in files."""
    settings = s3_settings(
        endpoint=s3.https_endpoint, allow_http=False, ca_file=str(certificates.authority)
    )
    product = product_in(settings)
    server, copy = product.server, tmp_path / "copy"
    product.copies.append(copy)
    server.sql("CREATE TABLE rows AS SELECT generate_series(1, 20000) AS number")
    checked = product.cli("check", "--json")
    findings = json.loads(checked.stdout)["findings"]
    assert [one for one in findings if one["severity"] == "fail"] == []
    backed_up = product.cli("backup", "--json")
    assert backed_up.returncode == 0, backed_up
    server.sql("INSERT INTO rows SELECT generate_series(20001, 30000)")
    server.sql("SELECT pg_create_restore_point('before the accident')")
    server.sql("DROP TABLE rows")
    product.switch()
    before = product.objects()
    for depth in ("--fast", "--full"):
        verified = product.cli("verify", depth, "--json")
        assert verified.returncode == 0, verified
    assert json.loads(verified.stdout)["backups"][0]["pages_checked"] > 0
    words = ("--to-name", "before the accident", "--target-dir", str(copy), "--start", "--yes")
    restored = product.cli("restore", *words, "--json")
    assert restored.returncode == 0, restored
    assert json.loads(restored.stdout)["started"]["state"] == "open"
    there = product.connected(copy)
    assert there.sql("SELECT count(*), sum(number) FROM rows") == [(30000, 450015000)]
    assert product.objects() == before
    auto = (copy / "postgresql.auto.conf").read_text()
    assert product.is_secret_kept(backed_up.stderr, restored.stderr, restored.stdout, auto)


def test_damage_in_s3_is_found(product_in: MakeProduct, s3_settings: S3Settings) -> None:
    product = product_in(s3_settings())
    backup = product.backup()
    store = open_store(product.repository, {}, is_anchored=False)
    key = layout.pack_key(SERVER, backup.backup_id, 0)
    content = bytearray(store.read(key))
    store.delete(key)
    missing = product.cli("verify", "--fast", "--json")
    content[len(content) // 2] ^= 1
    store.put(key, [bytes(content)])
    damaged = product.cli("verify", "--json")
    for said, code in ((missing, "pack-missing"), (damaged, "pack-damaged")):
        assert said.returncode == VerifyFailedError.exit_status, said
        (found,) = json.loads(said.stdout)["findings"]
        assert (found["code"], key in found["message"]) == (code, True)
    assert product.cli("verify", "--fast").returncode == 0  # it is there, and as long as it was


def test_a_restore_does_not_count_on_what_is_frozen(
    product_in: MakeProduct, s3: S3Server, s3_settings: S3Settings, tmp_path: Path
) -> None:
    """A lifecycle rule has moved a pack: named before a byte is written, and no try to read it."""
    product = product_in(s3_settings())
    backup = product.backup()
    settings = product.repository
    key = layout.pack_key(SERVER, backup.backup_id, 0)
    content = open_store(settings, {}).read(key)
    cold = {"x-amz-storage-class": "DEEP_ARCHIVE"}
    path = f"/{settings.bucket}/{settings.prefix}/{key}"
    administer(s3.endpoint, path, content=content, also=cold)
    target = tmp_path / "copy"
    for more in ((), ("--dry-run",)):
        refused = product.cli("restore", "--target-dir", str(target), *more)
        assert refused.returncode == ObjectFrozenError.exit_status, refused
        assert key in refused.stderr
        assert not target.exists()


def test_wrong_credentials_change_nothing(product_in: MakeProduct, s3_settings: S3Settings) -> None:
    product = product_in(s3_settings())
    product.backup()
    name = product.switch()  # and with it the backup's history file is archived
    before = product.objects()
    for file, wrong in (("secret", "wrong-secret-of-nobody"), ("access", "nobody")):
        right = (product.secrets / file).read_text()
        (product.secrets / file).write_text(wrong)
        for words in (
            ("wal", "push", str(product.server.pgdata / "pg_wal" / name)),
            ("wal", "fetch", name, str(product.directory / "segment")),
            ("wal", "fetch", "0000000100000000000000FF", str(product.directory / "segment")),
            ("backup",),
            ("backups", "list"),
            ("restore", "--target-dir", str(product.directory / "copy"), "--yes"),
        ):
            finished = product.cli(*words)
            assert finished.returncode == StoreRefusedError.exit_status, finished
            assert "HINT: see the credentials" in finished.stderr
            assert product.is_secret_kept(finished.stderr, finished.stdout)
            assert wrong not in finished.stderr
        (product.secrets / file).unlink()
        missing = product.cli("wal", "push", str(product.server.pgdata / "pg_wal" / name))
        assert missing.returncode == 3
        assert str(product.secrets / file) in missing.stderr
        (product.secrets / file).write_text(right)
    assert product.objects() == before
    assert not (product.directory / "segment").exists()
    assert not (product.directory / "copy").exists()


# --- outages -----------------------------------------------------------------------------


def test_an_outage_during_push(
    product_in: MakeProduct, s3_settings: S3Settings, own_s3: S3Server, proxy: RecordingProxy
) -> None:
    """PostgreSQL keeps its segments and archives every one of them later."""
    product = product_in(s3_settings(endpoint=proxy.endpoint, timeout_seconds=5.0))
    server = product.server
    names = [product.switch()]
    stopped = stops_at(own_s3, proxy, "PUT", "/wal/")
    for number in range(3):
        server.sql("SELECT pg_logical_emit_message(true, 'test', %s)", str(number))
        names.append(str(server.value("SELECT pg_walfile_name(pg_current_wal_lsn())")))
        server.sql("SELECT pg_switch_wal()")
    server.wait_until(stopped.is_set, "a push that is cut off")
    server.wait_until(
        lambda: server.value("SELECT failed_count FROM pg_stat_archiver") > 0, "a failure"
    )
    waiting = server.pgdata / "pg_wal" / "archive_status"
    assert {f"{name}.ready" for name in names[1:]} <= {path.name for path in waiting.iterdir()}
    starts_again(own_s3, proxy)
    names.append(product.switch())  # wakes the archiver, which waits for a minute otherwise
    archive = product.archive()
    assert [segment.name for segment in archive.segments(1)][-len(names) :] == names
    for name in names:
        assert archive.read(name) == (server.pgdata / "pg_wal" / name).read_bytes()


def test_an_outage_during_recovery(
    product_in: MakeProduct,
    pg_factory: ServerFactory,
    s3_settings: S3Settings,
    own_s3: S3Server,
    proxy: RecordingProxy,
    tmp_path: Path,
) -> None:
    """Fact 3: the instance ends, and is not promoted without what the archive holds."""
    product = product_in(s3_settings(endpoint=proxy.endpoint, timeout_seconds=5.0))
    product.backup()
    server, copy = product.server, tmp_path / "copy"
    server.sql("CREATE TABLE rows (number int)")
    names = []
    for number in range(3):
        server.sql("INSERT INTO rows VALUES (%s)", number)
        names.append(product.switch())
    product.restore(copy)
    restored = pg_factory.adopt(copy)
    stopped = stops_at(own_s3, proxy, "GET", names[1])
    restored.start(wait=False)
    assert restored.wait_exit() != 0
    assert stopped.is_set()
    assert "exit code 200" in restored.log
    assert (copy / "recovery.signal").exists()
    starts_again(own_s3, proxy)
    restored.start()
    restored.wait_until(
        lambda: not restored.value("SELECT pg_is_in_recovery()"), "the end of recovery"
    )
    assert restored.sql("SELECT number FROM rows ORDER BY 1") == [(0,), (1,), (2,)]


def test_an_outage_during_backup(
    product_in: MakeProduct, s3_settings: S3Settings, own_s3: S3Server, proxy: RecordingProxy
) -> None:
    """No backup, no session left on the server, and the next one works."""
    product = product_in(s3_settings(endpoint=proxy.endpoint, pack_bytes=1 << 18))
    server = product.server
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgrecall%%'"
    for word in ("/pack-", "/manifest", "/complete.json"):
        stopped = stops_at(own_s3, proxy, "PUT", word)
        finished = product.cli("backup")
        assert stopped.is_set()
        assert finished.returncode == StoreError.exit_status, finished
        assert finished.stderr.count("HINT: ") == 1
        server.wait_until(
            lambda: server.sql(sessions) == [(0,)], "the session is gone", timeout_seconds=10
        )
        starts_again(own_s3, proxy)
        listed = json.loads(product.cli("backups", "list", "--json").stdout)
        assert listed["backups"] == []
    made = product.backup()
    listed = json.loads(product.cli("backups", "list", "--json").stdout)
    assert [line["backup_id"] for line in listed["backups"]] == [made.backup_id]


def test_one_repository_here_and_one_that_is_down(
    product_in: MakeProduct, s3_settings: S3Settings, tmp_path: Path
) -> None:
    """Best effort: a warning, and success. Required: failure, though the other one has it."""
    product = product_in(s3_settings())
    server = product.server
    name = product.switch()
    segment = str(server.pgdata / "pg_wal" / name)
    down = s3_settings(name="down", endpoint="http://127.0.0.1:1", connect_timeout_seconds=2.0)
    down = with_secret_files(down, product.secrets)
    text = product.config.read_text()

    product.config.write_text(text + table(down.replace(role="best-effort")))
    pushed = product.cli("wal", "push", segment)
    assert (pushed.returncode, pushed.stdout) == (0, "")
    assert pushed.stderr.startswith("pgrecall: WARNING: repository 'down': ")
    pushed = product.cli("wal", "push", segment, "--json")
    (warning,) = json.loads(pushed.stdout)["warnings"]
    assert f"pgrecall: WARNING: {warning}\n" == pushed.stderr
    fetched = product.cli("wal", "fetch", name, str(tmp_path / "segment"))
    assert fetched.returncode == 0
    absent = product.cli("wal", "fetch", "0000000100000000000000FF", str(tmp_path / "none"))
    assert absent.returncode == StoreError.exit_status  # fact 6: nobody knows
    # PostgreSQL's log is where the warning is read.
    product.switch()
    server.wait_until(lambda: "WARNING: repository 'down'" in server.log, "the warning is logged")

    product.config.write_text(text + table(down))
    pushed = product.cli("wal", "push", segment)
    assert pushed.returncode == StoreError.exit_status
    assert "WARNING" not in pushed.stderr
    assert product.is_secret_kept(pushed.stderr, absent.stderr)


# --- how much is asked of it --------------------------------------------------------------


def test_requests_of_the_archive_commands(
    product_in: MakeProduct, s3: S3Server, s3_settings: S3Settings, tmp_path: Path
) -> None:
    """Each is a way there and back, some of them at once: seven to push one, four to fetch one."""
    with recording_proxy(s3.endpoint) as proxy:
        product = product_in(s3_settings(endpoint=proxy.endpoint), archive_mode="off")
        server = product.server
        name = server.value("SELECT pg_walfile_name(pg_current_wal_lsn())")
        server.sql("SELECT pg_logical_emit_message(true, 'test', 'not empty')")
        server.sql("SELECT pg_switch_wal()")
        counts = {}
        for what, words in {
            "push": ("wal", "push", str(server.pgdata / "pg_wal" / name)),
            "again": ("wal", "push", str(server.pgdata / "pg_wal" / name)),
            "fetch": ("wal", "fetch", name, str(tmp_path / "segment")),
            "absent": ("wal", "fetch", "0000000100000000000000FF", str(tmp_path / "none")),
        }.items():
            proxy.requests.clear()
            finished = product.cli(*words)
            assert finished.returncode == (64 if what == "absent" else 0), finished
            counts[what] = len(proxy.requests)
            assert sum(request.startswith("PUT") for request in proxy.requests) == (
                what in {"push", "again"}
            )
    assert counts == {"push": 7, "again": 7, "fetch": 4, "absent": 5}


class CountingStore:
    """Counts the writers that are open at one time: each may hold a pack in memory."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._open: set[int] = set()
        self.most = 0
        self.packs = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def writer(self, key: str) -> ObjectWriter:
        writer = self._inner.writer(key)
        if "/pack-" not in key:
            return writer
        commit, discard = writer.commit, writer.discard

        def done(end: Callable[[], Any]) -> Any:
            try:
                return end()
            finally:
                with self._lock:
                    self._open.discard(id(writer))

        writer.commit = lambda: done(commit)  # type: ignore[method-assign]
        writer.discard = lambda: done(discard)  # type: ignore[method-assign]
        with self._lock:
            self._open.add(id(writer))
            self.packs += 1
            self.most = max(self.most, len(self._open))
        return writer


def test_packs_in_memory_are_bounded(
    product_in: MakeProduct,
    s3: S3Server,
    s3_settings: S3Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However slow the store is: (workers + 2 x committers) packs, and so many uploads at once."""
    counting: list[CountingStore] = []

    def counted(settings: RepositorySettings, environment: Any) -> Any:
        counting.append(CountingStore(open_store(settings, environment)))
        return counting[-1]

    monkeypatch.setattr(opened, "open_store", counted)
    with recording_proxy(s3.endpoint) as proxy:
        proxy.counts = lambda request: request.startswith("PUT") and "/pack-" in request
        product = product_in(s3_settings(endpoint=proxy.endpoint, pack_bytes=1 << 16))
        product.server.sql(
            "CREATE TABLE noise AS SELECT sha512(i::text::bytea) AS x, i FROM "
            "generate_series(1, 30000) AS i"
        )
        proxy.delay_seconds = 0.05
        completion = product.backup()
        proxy.delay_seconds = 0.0
    (store,) = counting
    assert store.packs == completion.totals.packs > 20
    workers = product.context().settings.backup.workers or os.cpu_count() or 1
    committers = COMMITTERS
    assert committers <= store.most <= workers + 2 * committers
    assert proxy.most_at_once == committers
    # 16 MiB each, and an upload holds its pack a second time: joined for the request.
    assert (2 + 3 * committers) * (16 << 20) < 250 << 20


def test_the_archive_lists_what_it_holds(product_in: MakeProduct, s3_settings: S3Settings) -> None:
    """The archive's read model over S3: segments by timeline, their indexes, no gap."""
    product = product_in(s3_settings())
    names = [product.switch() for _ in range(3)]
    store = open_store(product.repository, {})
    generation = latest_generation(store, SERVER)
    assert generation is not None
    archive = WalArchive(store, SERVER, generation)
    assert [segment.name for segment in archive.segments(1)][-3:] == names
    assert [name for name, _ in archive.indexes(names)] == names
