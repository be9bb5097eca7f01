"""What a capture leaves out of a plain repository."""

from __future__ import annotations

import pytest

from pgrecall.model.withholding import is_secret, without_secrets

HIDDEN = "s3cr3t"


@pytest.mark.parametrize(
    "line",
    [
        f"primary_conninfo = 'host=a password={HIDDEN}'",
        f"#primary_conninfo = 'host=a password={HIDDEN}'",
        f"archive_command 'curl -u u:{HIDDEN} x'",
        f"app.jwt_secret = '{HIDDEN}'",
        f"other = 'postgresql://u:{HIDDEN}@h/d'",
        f'host all all all ldap "ldapbindpasswd={HIDDEN}" x=1',
        f"host all all all ldap ldapserver=x \\\n ldapbindpasswd={HIDDEN}",
        f"host all all all radius radiussecrets=a,\\\n{HIDDEN}",
        f"# once: password={HIDDEN}",
    ],
)
def test_a_secret_is_left_out_of_a_file(line: str) -> None:
    text, is_cut = without_secrets(f"work_mem = 4MB\n{line}\nport = 1\n")
    assert is_cut
    assert HIDDEN not in text
    assert text.startswith("work_mem = 4MB\n")
    assert text.endswith("port = 1\n")


def test_other_lines_stay_as_they_are() -> None:
    text = "password_encryption = scram-sha-256\nhost all all all password\nssl_key_file = 'x'\n"
    text += "#archive_command = ''\t# passphrase\n"
    assert without_secrets(text) == (text, False)


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("archive_command", "", False),
        ("restore_command", "cp", True),
        ("password_encryption", "scram-sha-256", False),
        ("app.api_key", "x", True),
        ("work_mem", "4MB", False),
    ],
)
def test_settings(name: str, value: str, secret: bool) -> None:
    assert is_secret(name, value) is secret
