"""The policies that docs/iam.md prints: what each role sends is in its policy, and no less."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from pgrecall.errors import StoreRefusedError, VerifyFailedError
from pgrecall.model.catalog_items import WalSpan
from pgrecall.model.policies import Policy
from pgrecall.model.runs import RunRecord
from pgrecall.repository import layout
from pgrecall.repository.identity import create_repository
from pgrecall.repository.journal import Journal
from pgrecall.repository.leases import leased
from pgrecall.repository.retention_log import append_any
from pgrecall.store.opening import open_store
from pgrecall.system.clock import SystemClock
from tests.e2e.test_s3 import S3Product, table, with_secret_files
from tests.support.object_servers import (
    BUCKET,
    READER_ACCESS_KEY,
    READER_SECRET_KEY,
    S3Server,
)
from tests.support.postgresql import ServerFactory
from tests.support.product import SERVER
from tests.support.recording_proxy import Answer, RecordingProxy, recording_proxy
from tests.support.retention_scene import GRACE, SIZE, RetentionScene
from tests.support.s3_fixtures import S3Settings

#: Read, or copied, where there are any: a repository with keys, a copy that took over, a fork...
SOMETIMES = {"keys", "owners", "branches", "enablements", "wal-index", "dumps", "drills"}
REFUSAL = Answer(403, content=b"<Error><Code>AccessDenied</Code><Message>No.</Message></Error>")
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "iam.md"
_ACTIONS = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject",
            "DELETE": "s3:DeleteObject"}  # fmt: skip
_QUESTIONS = {
    "versioning": "s3:GetBucketVersioning",
    "object-lock": "s3:GetBucketObjectLockConfiguration",
    "publicAccessBlock": "s3:GetBucketPublicAccessBlock",
    "policyStatus": "s3:GetBucketPolicyStatus",
    "logging": "s3:GetBucketLogging",
    "encryption": "s3:GetEncryptionConfiguration",
}


class Asked(NamedTuple):
    """An action of IAM, and the resource as docs/iam.md writes it."""

    action: str
    resource: str


def policy(role: str) -> list[Asked]:
    """Every pair of action and resource that the page allows a role."""
    text = DOCUMENT.read_text(encoding="utf-8")
    block = re.search(rf"^## {role}\b.*?```json\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    assert block is not None, role
    pairs = []
    for statement in json.loads(block[1])["Statement"]:
        assert statement["Effect"] == "Allow"
        for action in _listed(statement["Action"]):
            pairs += [Asked(action, one) for one in _listed(statement["Resource"])]
    return pairs


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else value


def asked(requests: list[str], prefix: str) -> set[Asked]:
    """What requests to the service ask for; the prefix of the test stands for that of the page."""
    found = set()
    for request in requests:
        method, target = request.split(" ", 1)
        url = urlsplit(target)
        key = unquote(url.path).removeprefix(f"/{BUCKET}").lstrip("/")
        query = parse_qs(url.query, keep_blank_values=True)
        if key:
            key = key.replace(prefix, "postgresql/main", 1)
            found.add(Asked(_ACTIONS[method], f"arn:aws:s3:::backups/{key}"))
            continue
        action = next((_QUESTIONS[name] for name in query if name in _QUESTIONS), "s3:ListBucket")
        found.add(Asked(action, "arn:aws:s3:::backups"))
    return found


def matches(one: Asked, rule: Asked) -> bool:
    return one.action == rule.action and fnmatchcase(one.resource, rule.resource)


def require_allowed(seen: set[Asked], *roles: str) -> None:
    """Everything seen is allowed by one of the roles."""
    allowed = [rule for one in roles for rule in policy(one)]
    refused = {one for one in seen if not any(matches(one, rule) for rule in allowed)}
    assert not refused, sorted(refused)


def require_smallest(role: str, seen: set[Asked], *besides: str) -> None:
    """Everything seen is allowed, by the role or those ``besides``; all that it allows was seen."""
    require_allowed(seen, role, *besides)
    unused = {rule for rule in policy(role) if not any(matches(one, rule) for one in seen)}
    assert {rule.resource.rpartition("/")[0].rpartition("/")[2] for rule in unused} <= SOMETIMES


LOOKS = (
    ("status",), ("wal", "status"), ("backups", "list"), ("recoverable",), ("repositories",),
    ("find", "--restore-points"), ("runs", "list"), ("runs", "verify"), ("expire", "--dry-run"),
)  # fmt: skip


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[RecordingProxy]:
    with recording_proxy(s3.endpoint) as proxy:
        yield proxy


@pytest.fixture
def product(
    pg_factory: ServerFactory, tmp_path: Path, s3_settings: S3Settings, proxy: RecordingProxy
) -> Iterator[S3Product]:
    settings = with_secret_files(s3_settings(endpoint=proxy.endpoint), tmp_path / "keys")
    kind = type("InOne", (S3Product,), {"in_s3": settings})
    product = kind.start(pg_factory, tmp_path)
    yield product
    product.close()


def test_each_role_needs_what_the_page_says(
    product: S3Product, proxy: RecordingProxy, tmp_path: Path
) -> None:
    prefix = product.repository.prefix

    def carry_out(*commands: tuple[str, ...]) -> set[Asked]:
        proxy.requests.clear()
        for words in commands:
            done = product.cli(*words)
            assert done.returncode in {0, 72, 73}, (words, done.stdout, done.stderr)
        return asked(proxy.requests, prefix)

    product.switch()
    proxy.requests.clear()
    product.switch()
    require_smallest("push", asked(proxy.requests, prefix))
    require_smallest("check", carry_out(("check", "--no-switch")), "status")

    # Neither backup nor restore needs to delete: what they try is refused, and they go on.
    proxy.falsify = lambda request, body: REFUSAL if request.startswith("DELETE") else body
    made = carry_out(("backup",), ("backup",))
    require_smallest("backup", without_leases(made), "push")
    target = tmp_path / "restored"
    product.copies.append(target)
    restored = carry_out(("restore", "--target-dir", str(target), "--start"))
    require_smallest("restore", without_leases(restored), "push")  # the server archives meanwhile

    # Enforced by the service, too: an identity that may read and list, and nothing else.
    (product.secrets / "access").write_text(READER_ACCESS_KEY)
    (product.secrets / "secret").write_text(READER_SECRET_KEY)
    require_smallest("status", carry_out(*LOOKS))
    assert product.cli("backup").returncode == StoreRefusedError.exit_status


def test_purge_needs_what_the_page_says(
    s3_settings: S3Settings, secret_environment: dict[str, str], proxy: RecordingProxy
) -> None:
    settings = s3_settings(endpoint=proxy.endpoint)
    scene = RetentionScene(open_store(settings, secret_environment))
    for _ in range(3):
        scene.backup()
        scene.work(3)
    proxy.requests.clear()
    with leased(scene.store, "main", "verify", [], lasts_seconds=900, run_id="r-x") as lease:
        scene.now = lease.taken_at  # by the server's clock
    scene.expire(Policy(keep_last=1))
    # The scene's WAL is as young as the server: its expiry is put down by hand.
    expired = WalSpan(generation=1, timeline=1, start=0, end=3 * SIZE, since=2)
    record = scene.author().record(kind="expire", items={}, wal=(expired,))
    append_any(scene.store, "main", record)
    scene.wait(GRACE + timedelta(hours=1))
    assert scene.purge()[0].wal_files
    run = RunRecord(
        run_id="r-20261122T201637Z-7k3q", server="main", command="purge", host="h",
        started_at=scene.now, ended_at=scene.now, outcome="ok", exit_status=0,
    )  # fmt: skip
    assert Journal(scene.store, "main").add(run, "r1", "h")
    require_smallest("purge", asked(proxy.requests, settings.prefix))


def test_verify_copy_and_repair_need_what_the_page_says(
    product: S3Product, s3_settings: S3Settings, proxy: RecordingProxy
) -> None:
    """Two repositories behind one proxy: what is asked of each is told by its prefix."""
    main = product.repository
    prefix = f"far{main.prefix[len('tests') :]}"
    far = with_secret_files(
        s3_settings(name="far", role="best-effort", prefix=prefix, endpoint=proxy.endpoint),
        product.secrets,
    )
    store = open_store(far, {}, is_anchored=False)
    create_repository(store, SystemClock().now())
    backup = product.backup()
    product.switch()
    text = product.config.read_text(encoding="utf-8")
    product.config.write_text(text + table(far), encoding="utf-8")

    def carry_out(*words: str, status: int = 0) -> tuple[set[Asked], set[Asked]]:
        """What is asked of either repository."""
        proxy.requests.clear()
        done = product.cli(*words)
        assert done.returncode == status, (words, done.stdout, done.stderr)
        of_main, of_far = (
            asked([one for one in proxy.requests if prefix in unquote(one)], prefix)
            for prefix in (main.prefix, far.prefix)
        )
        return of_main, of_far

    # As in backups, only leases are tried to be deleted, and that it is refused stops nobody.
    proxy.falsify = lambda request, body: REFUSAL if request.startswith("DELETE") else body
    of_main, of_far = carry_out("copy", "--from", main.name, "--to", "far")
    require_smallest("copy from", without_leases(of_main), "push")
    _, again = carry_out("copy", "--from", main.name, "--to", "far")  # the first run's record
    require_smallest("copy to", without_leases(of_far | again))
    key = layout.pack_key(SERVER, backup.backup_id, 0)
    pack = store.read(key)
    proxy.falsify = lambda request, body: body
    store.delete(key)
    store.put(key, [pack[:100], bytes([pack[100] ^ 1]), pack[101:]])
    proxy.falsify = lambda request, body: REFUSAL if request.startswith("DELETE") else body
    _, of_far = carry_out("verify", "--repository", "far", status=VerifyFailedError.exit_status)
    require_smallest("verify", without_leases(of_far))

    proxy.falsify = lambda request, body: body
    of_main, of_far = carry_out("repair", "--repository", "far", "--yes")
    assert store.read(key) == pack
    require_allowed(of_main, "status", "push")  # the server archives meanwhile
    require_smallest("repair", of_far)


def without_leases(seen: set[Asked]) -> set[Asked]:
    """Without what was tried of leases, and refused; nothing else may have been."""
    tried = {one for one in seen if one.action == "s3:DeleteObject"}
    assert tried
    assert all("/leases/" in one.resource for one in tried)
    return seen - tried
