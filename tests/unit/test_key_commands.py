"""Keys that a command opens: what it is told, how it fails, and what is concluded of that."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pgrecall.errors import KeyRefusedError, PgrecallError, StoreError
from pgrecall.further_errors import KeyUnavailableError
from tests.unit.test_keyring import OBJECT, Place, command


def test_a_command_never_sees_a_key_among_its_arguments(tmp_path: Path) -> None:
    place = Place(tmp_path, **command(tmp_path))
    key_id = place.put()
    log = (tmp_path / "kms-one.log").read_text()
    assert set(log.splitlines()) == {f"wrap {key_id}", f"unwrap {key_id}"}


@pytest.mark.parametrize(
    ("text", "told", "kind"),
    [
        ("exit 3", "status 3: it said nothing", KeyUnavailableError),
        ("kill -9 $$", "status -9", KeyUnavailableError),
        ("echo away >&2; exit 75", "away", KeyUnavailableError),
        ("echo AccessDenied >&2; exit 77", "AccessDenied", KeyRefusedError),
        ("cat >&2; exit 1", "repeats what it was given", KeyUnavailableError),
        ("echo short", "6 bytes, not|has 32 bytes|another", KeyRefusedError),
        ("cat", "no wrapped key", KeyRefusedError),
        ("sleep 60", "did not end", KeyUnavailableError),
    ],
)
def test_commands_that_fail(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    told: str,
    kind: type[PgrecallError],
) -> None:
    monkeypatch.setattr("pgrecall.repository.wrapping_command.TIMEOUT_SECONDS", 2.0)
    monkeypatch.setattr(os, "urandom", lambda count: b"k" * count)
    words = ("/bin/sh", "-c", text)
    with pytest.raises(kind, match=told) as caught:
        Place(tmp_path, encryption="command", wrap_command=words, unwrap_command=words)
    assert type(caught.value) is kind
    assert caught.value.retryable == (kind is KeyUnavailableError)
    assert b"k" * 32 not in str(caught.value).encode()


def test_an_outage_of_the_kms_is_no_refusal(tmp_path: Path) -> None:
    """Nothing is concluded from it: not that a key is lost, nor which envelopes may go."""
    place = Place(tmp_path, **command(tmp_path))
    key_id = place.put()
    kms = tmp_path / "kms-one"
    kms.rename(tmp_path / "kms-away")
    with pytest.raises(KeyUnavailableError, match="cannot run") as caught:
        place.store.read(OBJECT)
    assert isinstance(caught.value, StoreError)
    assert "status" not in caught.value.message
    assert "77" in caught.value.hint
    with pytest.raises(KeyUnavailableError):
        place.put("servers/main/y")
    assert place.findings() == {"key-unavailable": "fail"}
    new = command(tmp_path, "two")
    place.configure(**new)
    old_words = {"encryption": "command", "unwrap_command": (str(kms), "unwrap")}
    for revoke_old in (False, True):
        with pytest.raises(KeyUnavailableError):
            place.rewrap(revoke_old=revoke_old, **old_words)
    (tmp_path / "kms-away").rename(kms)
    (tmp_path / "kms-two").rename(tmp_path / "kms-away")
    with pytest.raises(KeyUnavailableError):
        place.rewrap(revoke_old=True, **old_words)
    assert [info.key for info in place.plain.list(f"keys/{key_id}")] == [f"keys/{key_id}/0001.json"]
    (tmp_path / "kms-away").rename(tmp_path / "kms-two")
    assert place.rewrap(revoke_old=True, **old_words) == 1
    assert place.store.read(OBJECT) == OBJECT.encode()


def test_an_outage_of_one_secret_does_not_matter_where_another_envelope_opens(
    tmp_path: Path,
) -> None:
    """In the time of a change, with a script that does not tell a refusal from an outage."""
    place = Place(tmp_path, **command(tmp_path))
    place.put()
    before = place.settings
    place.configure(**command(tmp_path, "two"))
    place.rewrap(encryption="command", unwrap_command=before.unwrap_command)
    kms = tmp_path / "kms-one"
    kms.write_text(kms.read_text().replace("exit 77", "exit 1"))
    place.settings = before
    assert place.store.read(OBJECT) == OBJECT.encode()


def test_the_script_of_the_page_tells_a_refusal_from_an_outage(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "encryption.md"
    _, _, text = page.read_text(encoding="utf-8").partition("```sh\n")
    kms = tmp_path / "kms"
    kms.write_text(text[: text.index("```")])
    aws = tmp_path / "aws"
    aws.write_text(
        '#!/bin/sh\ncase "$*" in *repository=r1,key=k1*) ;; *) exit 9 ;; esac\n'
        'if [ -n "$FAILS" ]; then echo "An error occurred ($FAILS)" >&2; exit 254; fi\n'
        "if [ $2 = encrypt ]; then { printf W; cat; } | base64; else tail -c +2 | base64; fi\n"
    )
    for path in (kms, aws):
        path.chmod(0o700)

    def run(word: str, given: bytes, fails: str = "") -> subprocess.CompletedProcess[bytes]:
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "FAILS": fails,
            "PGRECALL_REPOSITORY_ID": "r1", "PGRECALL_KEY_ID": "k1",
        }  # fmt: skip
        return subprocess.run(
            [str(kms), word], input=given, env=environment, capture_output=True, check=False
        )

    key = bytes(range(224, 256))
    wrapped = run("encrypt", key)
    assert (wrapped.returncode, wrapped.stdout) == (0, b"W" + key)
    assert run("decrypt", wrapped.stdout).stdout == key
    refused = run("decrypt", wrapped.stdout, "AccessDeniedException")
    assert (refused.returncode, refused.stdout) == (77, b"")
    assert b"AccessDenied" in refused.stderr
    assert run("decrypt", wrapped.stdout, "ThrottlingException").returncode == 75
    assert run("encrypt", key, "InternalFailure").returncode == 75
