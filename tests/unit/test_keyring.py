"""The keys of a repository: found, opened, rotated, wrapped anew, exported; and planted ones."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyrage
import pytest

from pgrecall.app.context import RunContext, Surroundings
from pgrecall.app.key_changing import export_keys, rewrap_keys, rotate_keys
from pgrecall.app.key_checking import check_keys
from pgrecall.app.requests import KeyExportRequest, KeyRewrapRequest, KeyRotateRequest
from pgrecall.codec.aead import DataKey, key_id_of
from pgrecall.errors import (
    ConfirmationError,
    CorruptObjectError,
    KeyMissingError,
    KeyRefusedError,
    NotEncryptedError,
    PgrecallError,
    SettingsError,
    UsageError,
)
from pgrecall.repository import wrapping_passphrase
from pgrecall.repository.envelopes import Introduction, add_envelope
from pgrecall.repository.identity import create_repository, open_repository
from pgrecall.repository.key_changes import create_encrypted_repository, rotate
from pgrecall.repository.keyring import LOOK_AGAIN_SECONDS, RepositoryKeys, repository_keys
from pgrecall.repository.opening import open_store
from pgrecall.repository.wrapping import open_wrapping
from pgrecall.settings import RepositorySettings, ServerSettings, Settings
from pgrecall.store.base import Store
from pgrecall.store.encrypted import EncryptedStore
from pgrecall.store.opening import open_store as open_plain_store
from pgrecall.system.progress import NoProgress
from tests.support.encryption import secret_file

NOW = datetime(2026, 11, 22, 20, 16, 37, tzinfo=UTC)
OBJECT = "servers/main/x"

Approve = Callable[..., bool]


@pytest.fixture(autouse=True)
def cheap_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrapping_passphrase, "_COST", (2, 8, 1))


class Place:
    """A repository in a directory, with the settings of its only host."""

    def __init__(self, directory: Path, **encryption: Any) -> None:
        self.directory = directory
        self.settings = RepositorySettings(
            name="main", path=str(directory / "repository"), retries=0, **encryption
        )
        self.plain = open_plain_store(self.settings, {}, is_anchored=False)
        os.makedirs(self.settings.path)
        if encryption:
            create_encrypted_repository(self.settings, {}, self.plain, NOW)
        else:
            create_repository(self.plain, NOW)

    @property
    def store(self) -> Store:
        """Opened anew, as another process would."""
        return open_store(self.settings, {})

    def keys(self) -> RepositoryKeys:
        return repository_keys(self.settings, {}, self.plain)

    def put(self, name: str = OBJECT) -> str:
        """Store an object; the id of the key that was used."""
        assert self.store.put(name, [name.encode()])
        return key_id_of(self.plain.read(name), name)

    def context(self, approve: Approve = lambda plan, question="": True) -> RunContext:
        settings = Settings(
            servers={"main": ServerSettings(name="main")},
            repositories={"main": self.settings},
        )
        surroundings = Surroundings(
            environment={}, progress=NoProgress(), run_id="r-test", approve=approve
        )
        return RunContext(settings, surroundings)

    def rotate(self) -> str:
        return rotate_keys(self.context(), KeyRotateRequest()).rotated[0].key_id

    def rewrap(self, *, revoke_old: bool = False, **old: Any) -> int:
        request = KeyRewrapRequest(old=old, revoke_old=revoke_old)
        return rewrap_keys(self.context(), request).added

    def configure(self, **encryption: Any) -> None:
        nothing: dict[str, Any] = {
            "encryption": "", "passphrase": "", "age_identity": "", "age_recipients": (),
            "wrap_command": (), "unwrap_command": (), "exported_keys": "",
        }  # fmt: skip
        self.settings = self.settings.replace(**{**nothing, **encryption})

    def findings(self) -> dict[str, str]:
        """Findings of key check that are not ok: severity by code."""
        found = check_keys(self.context()).findings
        return {one.code: one.severity for one in found if one.severity != "ok"}


def passphrase(directory: Path, text: str = "one") -> dict[str, Any]:
    path = secret_file(directory, text, f"passphrase-{text}")
    return {"encryption": "passphrase", "passphrase": f"file:{path}"}


def age(directory: Path, name: str = "one") -> dict[str, Any]:
    identity = pyrage.x25519.Identity.generate()
    text = f"# created: now\n# public key: {identity.to_public()}\n{identity}"
    path = secret_file(directory, text, f"identity-{name}")
    return {"encryption": "age", "age_identity": f"file:{path}"}


def command(directory: Path, name: str = "one") -> dict[str, Any]:
    """A KMS that notes what it was told, and fails for what it has not wrapped."""
    path = directory / f"kms-{name}"
    path.write_text(
        f'#!/bin/sh\necho "$* $PGRECALL_KEY_ID" >> {path}.log\n'
        f"if [ $1 = wrap ]; then printf {name}:; exec base64 -w0; fi\n"
        f'read -r text; [ "${{text%%:*}}" = {name} ] || exit 77\n'
        'printf %s "${text#*:}" | base64 -d\n'
    )
    path.chmod(0o700)
    return {
        "encryption": "command",
        "wrap_command": (str(path), "wrap"),
        "unwrap_command": (str(path), "unwrap"),
    }


METHODS = {"passphrase": passphrase, "age": age, "command": command}


@pytest.fixture(params=METHODS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(tmp_path, **METHODS[request.param](tmp_path))


def test_what_was_put_is_read_by_others(place: Place) -> None:
    place.put()
    assert place.store.read(OBJECT) == OBJECT.encode()
    assert OBJECT.encode() not in place.plain.read(OBJECT)
    assert place.findings() == {}


def test_rotation_keeps_old_objects_readable(place: Place) -> None:
    first = place.put()
    second = place.rotate()
    assert second > first
    assert place.put("servers/main/y") == second
    assert place.store.read(OBJECT) == OBJECT.encode()
    third = place.rotate()  # in the same second
    assert third > second
    assert place.put("servers/main/z") == third
    assert place.findings() == {}
    listed = check_keys(place.context())
    assert [line.opens for line in listed.envelopes] == ["yes"] * 3
    assert listed.current == {"main": third}


@pytest.mark.parametrize("new", METHODS)
def test_rewrap_and_revoke(place: Place, tmp_path: Path, new: str) -> None:
    place.put()
    place.rotate()
    place.put("servers/main/y")
    before = place.settings
    place.configure(**METHODS[new](tmp_path, "another"))
    with pytest.raises(KeyRefusedError):
        place.store.read(OBJECT)
    with pytest.raises(KeyRefusedError):
        place.rewrap()
    old = {
        name: getattr(before, name)
        for name in ("encryption", "passphrase", "age_identity", "unwrap_command")
    }
    assert place.rewrap(**old) == 2
    assert place.rewrap(**old) == 0  # again, as after an interruption
    # Both secrets open everything now.
    for settings in (before, place.settings):
        reading = open_store(settings, {})
        assert reading.read(OBJECT) == OBJECT.encode()
        assert reading.read("servers/main/y") == b"servers/main/y"
    assert place.findings() == {"key-envelope-old": "warn"}
    assert place.rewrap(revoke_old=True) == 0
    assert place.findings() == {}
    assert place.store.read(OBJECT) == OBJECT.encode()
    with pytest.raises(KeyRefusedError):
        open_store(before, {}).read(OBJECT)
    with pytest.raises(KeyRefusedError):
        open_store(before, {}).put("servers/main/z", [b"z"])
    place.settings = before
    assert place.findings() == {"key-refused": "fail"}


def test_a_host_with_the_old_secret_is_told(tmp_path: Path) -> None:
    place = Place(tmp_path, **passphrase(tmp_path))
    before = place.settings
    place.configure(**passphrase(tmp_path, "two"))
    place.rewrap(encryption="passphrase", passphrase=before.passphrase)
    place.settings = before
    assert place.findings() == {"key-secret-old": "warn"}


def test_recipients_can_change(tmp_path: Path) -> None:
    place = Place(tmp_path, **age(tmp_path))
    place.put()
    colleague = age(tmp_path, "colleague")
    text = Path(colleague["age_identity"].removeprefix("file:")).read_text()
    own = Path(place.settings.age_identity.removeprefix("file:")).read_text()
    recipients = tuple(
        line.split()[-1] for line in (own + text).splitlines() if "public key" in line
    )
    place.settings = place.settings.replace(age_recipients=recipients)
    assert place.rewrap() == 1
    place.configure(**colleague)
    assert place.store.read(OBJECT) == OBJECT.encode()


def test_the_export_opens_the_repository_and_gives_it_a_new_secret(place: Place) -> None:
    place.put()
    place.rotate()
    place.put("servers/main/y")
    path = place.directory / "export.json"
    exported = export_keys(place.context(), KeyExportRequest(path=str(path)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(exported.keys) == 2
    assert exported.document == ""
    with pytest.raises(SettingsError, match="File exists"):
        export_keys(place.context(), KeyExportRequest(path=str(path)))
    place.configure(encryption="exported", exported_keys=f"file:{path}")
    assert place.store.read(OBJECT) == OBJECT.encode()
    place.put("servers/main/z")
    assert place.findings() == {}
    with pytest.raises(KeyMissingError, match="cannot wrap"):
        place.rotate()
    place.configure(**passphrase(place.directory, "found"))
    place.rewrap(encryption="exported", exported_keys=f"file:{path}", revoke_old=True)
    assert place.store.read(OBJECT) == OBJECT.encode()
    assert place.findings() == {}


def test_the_export_needs_no_envelope(tmp_path: Path) -> None:
    place = Place(tmp_path, **passphrase(tmp_path))
    place.put()
    export_keys(place.context(), KeyExportRequest(path=str(tmp_path / "export")))
    for info in list(place.plain.list("keys/")):
        place.plain.delete(info.key)
    with pytest.raises(PgrecallError, match="is not there"):
        place.store.read(OBJECT)
    place.configure(encryption="exported", exported_keys=f"file:{tmp_path / 'export'}")
    assert place.store.read(OBJECT) == OBJECT.encode()
    assert place.findings() == {"key-envelope-missing": "warn"}
    old = {"encryption": "exported", "exported_keys": place.settings.exported_keys}
    place.configure(**passphrase(tmp_path))
    assert place.rewrap(**old) == 1
    assert place.store.read(OBJECT) == OBJECT.encode()


def test_an_export_of_another_repository_is_refused(tmp_path: Path) -> None:
    place = Place(tmp_path, **passphrase(tmp_path))
    (tmp_path / "b").mkdir()
    other = Place(tmp_path / "b", **passphrase(tmp_path / "b"))
    place.put()
    export_keys(other.context(), KeyExportRequest(path=str(tmp_path / "export")))
    place.configure(encryption="exported", exported_keys=f"file:{tmp_path / 'export'}")
    with pytest.raises(KeyRefusedError, match="those of repository"):
        place.store.read(OBJECT)
    (tmp_path / "garbled").write_text("{}")
    place.configure(encryption="exported", exported_keys=f"file:{tmp_path / 'garbled'}")
    with pytest.raises(KeyMissingError, match="digest"):
        place.store.read(OBJECT)


def test_settings_and_repository_must_agree(tmp_path: Path) -> None:
    encrypted = Place(tmp_path, **passphrase(tmp_path))
    encrypted.configure()
    with pytest.raises(KeyMissingError, match="is encrypted"):
        open_repository(encrypted.store)
    (tmp_path / "b").mkdir()
    plain = Place(tmp_path / "b")
    open_repository(plain.store)
    with pytest.raises(NotEncryptedError):
        plain.rewrap()
    plain.configure(**passphrase(tmp_path))
    for act in (lambda: open_repository(plain.store), plain.put, plain.rotate):
        with pytest.raises(NotEncryptedError, match="not encrypted"):
            act()
    assert [info.key for info in plain.plain.list("")] == ["repository.json"]


def test_secrets_that_are_not_there_are_told_before_anything_is_written(tmp_path: Path) -> None:
    place = Place(tmp_path, **passphrase(tmp_path))
    for encryption in (
        {"encryption": "passphrase", "passphrase": "env:NOWHERE"},
        {"encryption": "passphrase"},
        {"encryption": "age"},
        {"encryption": "age", "age_identity": f"file:{tmp_path / 'passphrase-one'}"},
        {"encryption": "command"},
        {"encryption": "exported"},
    ):
        place.configure(**encryption)
        with pytest.raises(KeyMissingError) as caught:
            open_store(place.settings, {})
        assert caught.value.hint


# --- whoever can write into the store ------------------------------------------------


def test_planted_keys_are_never_used(tmp_path: Path) -> None:
    place = Place(tmp_path, **age(tmp_path))
    first = place.put()
    wrapping = open_wrapping(place.settings, {})  # recipients are no secret
    repository_id = place.keys().repository_id()
    planted = DataKey("k-20990101T000000Z-ev17", os.urandom(32))
    add_envelope(place.plain, Introduction(repository_id, planted, None), wrapping, NOW)
    root = DataKey(first, os.urandom(32))
    add_envelope(place.plain, Introduction(repository_id, root, None), wrapping, NOW)
    assert place.put("servers/main/y") == first
    assert place.keys().find(planted.key_id) is None
    assert place.store.read(OBJECT) == OBJECT.encode()
    assert place.findings() == {"key-strange": "warn"}


def test_a_damaged_envelope_is_passed_over_and_told(tmp_path: Path) -> None:
    place = Place(tmp_path, **passphrase(tmp_path))
    key_id = place.put()
    place.rewrap()
    path = Path(place.settings.path, "keys", key_id, "0002.json")
    path.write_bytes(path.read_bytes().replace(b'"method"', b'"methob"'))
    assert place.store.read(OBJECT) == OBJECT.encode()
    assert place.findings()["key-damaged"] == "fail"
    junk = "keys/k-20990101T000000Z-abcd/0001.json"
    place.plain.put(junk, [b"junk"])
    assert place.put("servers/main/y") == key_id
    place.plain.delete(junk)
    Path(place.settings.path, "keys", key_id, "0001.json").unlink()
    with pytest.raises(CorruptObjectError, match="digest"):
        place.store.read(OBJECT)


def test_an_envelope_cannot_ask_for_all_memory(tmp_path: Path) -> None:
    wrapping = open_wrapping(Place(tmp_path, **passphrase(tmp_path)).settings, {})
    for n, r, p in [
        (1 << 30, 8, 1),
        (1 << 20, 32, 1),
        (3, 8, 1),
        (0, 8, 1),
        (16, 0, 1),
        (-2, 8, 1),
    ]:
        fields = {"kdf": "scrypt", "n": n, "r": r, "p": p, "salt": "00", "sealed": "00" * 60}
        with pytest.raises(Exception, match="asks for"):
            wrapping.unwrap(fields, None)  # type: ignore[arg-type]


# --- processes that stay -------------------------------------------------------------


def test_a_process_takes_up_keys_of_others(tmp_path: Path) -> None:
    place = Place(tmp_path, **passphrase(tmp_path))
    now = [0.0]
    keys = RepositoryKeys(
        "main", place.plain, open_wrapping(place.settings, {}), clock=lambda: now[0]
    )
    first = keys.current().key_id
    second = place.rotate()
    assert keys.current().key_id == first
    now[0] += LOOK_AGAIN_SECONDS
    assert keys.current().key_id == second
    third = rotate(place.keys(), NOW - timedelta(days=9)).key_id  # a clock that is behind
    assert third > second
    assert keys.find(third) is not None  # an object names it
    assert keys.current().key_id == third
    assert keys.find("k-20200101T000000Z-n0ne") is None


def test_what_another_host_stored_under_a_new_key_is_read_at_once(place: Place) -> None:
    """An agent looks for keys once a minute, and whenever an object names one that it lacks."""
    now = [0.0]
    keys = RepositoryKeys(
        "main", place.plain, open_wrapping(place.settings, {}), clock=lambda: now[0]
    )
    agent = EncryptedStore(place.plain, keys)
    assert agent.put("servers/main/first", [b"first"])
    names = [f"servers/main/{number}" for number in range(3)]
    for name in names:
        second = place.rotate()
        assert place.put(name) == second
    assert agent.read(names[0]) == names[0].encode()
    assert agent.read(names[1], 2, 5) == names[1].encode()[2:7]
    with agent.reader(names[2]) as reader:
        assert bytes(reader.read(0, reader.size)) == names[2].encode()
    assert now == [0.0]
    # What it stores meanwhile under the key of before, others read.
    assert agent.put("servers/main/last", [b"last"])
    assert place.store.read("servers/main/last") == b"last"


def test_a_key_that_was_wrapped_anew_meanwhile_is_looked_up_again(place: Place) -> None:
    """Its envelope of then is gone: that is no damage of what is encrypted with it."""
    place.rotate()
    place.put()
    keys = place.keys()
    assert len(keys.numbers()) == 2  # listed; only the first is opened
    keys.root()
    assert place.rewrap() == 2
    assert place.rewrap(revoke_old=True) == 0
    assert EncryptedStore(place.plain, keys).read(OBJECT) == OBJECT.encode()
    # Nor where not even the first is open.
    keys = place.keys()
    keys.numbers()
    assert place.rewrap() == 2
    assert place.rewrap(revoke_old=True) == 0
    assert EncryptedStore(place.plain, keys).read(OBJECT) == OBJECT.encode()


def test_a_key_that_is_open_is_not_waited_for(place: Place) -> None:
    """A KMS that does not answer for a new key holds up nobody who needs it not."""
    keys = place.keys()
    first = keys.current().key_id
    with ThreadPoolExecutor(1) as pool, keys._lock:  # as whoever asks the KMS holds it
        assert pool.submit(keys.find, first).result(timeout=10) is not None


# --- commands ----------------------------------------------------------------------------


def test_dry_runs_and_refusals_change_nothing(tmp_path: Path) -> None:
    place = Place(tmp_path, **passphrase(tmp_path))

    def refuse(plan: object, *, question: str = "") -> bool:
        if question:
            raise ConfirmationError("no")
        return True

    place.rewrap()
    before = [info.key for info in place.plain.list("")]
    rotate_keys(place.context(), KeyRotateRequest(dry_run=True))
    rewrap_keys(place.context(), KeyRewrapRequest(dry_run=True, revoke_old=True))
    with pytest.raises(ConfirmationError):
        rewrap_keys(place.context(refuse), KeyRewrapRequest(revoke_old=True))
    assert [info.key for info in place.plain.list("")] == before
    place.configure()
    with pytest.raises(KeyMissingError, match="no encryption is configured"):
        place.rotate()


def test_which_repository_must_be_clear(tmp_path: Path) -> None:
    place = Place(tmp_path, **passphrase(tmp_path))
    (tmp_path / "b").mkdir()
    other = Place(tmp_path / "b", **passphrase(tmp_path / "b"))
    context = place.context()
    context.settings.repositories["other"] = other.settings.replace(name="other")
    with pytest.raises(UsageError, match="which one"):
        export_keys(context, KeyExportRequest())
    assert len(rotate_keys(context, KeyRotateRequest()).rotated) == 2
    context.repository_name = "other"
    assert export_keys(context, KeyExportRequest()).repository == "other"
