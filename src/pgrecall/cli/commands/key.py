"""``key check``, ``key rotate``, ``key rewrap``, ``key export``."""

from __future__ import annotations

import click

from pgrecall.app.key_changing import export_keys, rewrap_keys, rotate_keys
from pgrecall.app.key_checking import check_keys
from pgrecall.app.requests import KeyExportRequest, KeyRewrapRequest, KeyRotateRequest
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled
from pgrecall.cli.words import command_words
from pgrecall.errors import CheckFailedError, UsageError
from pgrecall.settings.declare import Value

# Option -> (setting that it stands for, value of ``encryption``).
_OLD = {
    "old_passphrase": ("passphrase", "passphrase"),
    "old_age_identity": ("age_identity", "age"),
    "old_unwrap_command": ("unwrap_command", "command"),
    "old_exported_keys": ("exported_keys", "exported"),
}


@framed_command(
    "check",
    examples=(
        Example("pgrecall key check", "all repositories of the only server"),
        Example("pgrecall key check --repository main --json", "one of them, for a program"),
    ),
)
@journalled("key check")
def check_command(invocation: Invocation) -> int:
    """Show the data keys of a repository, and open each with the configured secret.

    Ends with 60 when one does not open. Nothing is changed.
    """
    result = check_keys(invocation.context())
    invocation.emit(result, "key-check/1")
    return CheckFailedError.exit_status if result.result == "fail" else 0


@framed_command(
    "rotate",
    changes=True,
    examples=(
        Example("pgrecall key rotate --dry-run", "which repositories would get a new key"),
        Example("pgrecall key rotate", "a new data key for what is stored from now on"),
    ),
)
@journalled("key rotate")
def rotate_command(invocation: Invocation) -> None:
    """Add a data key: what is stored from now on is encrypted with it.

    Older keys stay and what they encrypted stays readable; no data is rewritten. The
    new key is wrapped by the configured secret. Running agents take it up within a minute.
    """
    request = KeyRotateRequest(dry_run=invocation.flag("dry_run"))
    invocation.emit(rotate_keys(invocation.context(), request), "key-rotate/1")


@framed_command(
    "rewrap",
    changes=True,
    examples=(
        Example(
            "pgrecall key rewrap --old-passphrase file:/etc/pgrecall/passphrase.old",
            "the settings name the new secret already; the old one still opens the keys",
        ),
        Example("pgrecall key rewrap --revoke-old", "all hosts have the new one: the old is out"),
        Example(
            "pgrecall key rewrap --old-exported-keys file:/safe/main.keys --revoke-old",
            "the secret is lost, the export is not",
        ),
        Example("pgrecall key rewrap", "age_recipients have changed, the identity has not"),
    ),
)
@click.option("--old-passphrase", help="Where the passphrase of until now is: env: or file:.")
@click.option("--old-age-identity", help="Where the age identity of until now is.")
@click.option("--old-unwrap-command", help="The unwrap_command of until now, as in a shell.")
@click.option("--old-exported-keys", help="Where the output of key export is.")
@click.option(
    "--revoke-old", is_flag=True, help="Remove the envelopes that only older secrets open."
)
@journalled("key rewrap")
def rewrap_command(invocation: Invocation, *, revoke_old: bool, **old: str | None) -> None:
    """Wrap the keys for another secret, without rewriting data.

    The new secret is the one in the settings; write it there first. How the keys are
    opened until now is said with one of --old-...; without, the configured secret opens
    them. The old secret goes on working, so that hosts can be changed one after the
    other, until --revoke-old removes what it opens (which is asked for). Whoever has
    copied an old envelope and has its secret keeps what was encrypted until then:
    after a theft rotate as well.
    """
    given = {name: text for name, text in old.items() if text}
    if len(given) > 1:
        raise UsageError("only one --old-... can be given", hint="the one that opens the keys now")
    values: dict[str, Value] = {}
    for name, text in given.items():
        setting, encryption = _OLD[name]
        words = command_words(name, text) if setting == "unwrap_command" else text
        values = {setting: words, "encryption": encryption}
    request = KeyRewrapRequest(
        old=values, revoke_old=revoke_old, dry_run=invocation.flag("dry_run")
    )
    invocation.emit(rewrap_keys(invocation.context(), request), "key-rewrap/1")


@framed_command(
    "export",
    examples=(
        Example("pgrecall key export --to /media/safe/main.keys", "a new file, mode 0600"),
        Example("pgrecall key export --print", "on paper, or into a vault"),
    ),
)
@click.option("--to", "path", type=click.Path(), help="A file that does not exist yet.")
@click.option("--print", "prints", is_flag=True, help="Print the keys.")
@journalled("key export", given=("path", "prints"))
def export_command(invocation: Invocation, *, path: str | None, prints: bool) -> None:
    """Write the keys themselves, for the safe: they open the repository without the secret.

    Use them with `encryption = "exported"` and `exported_keys = "file:..."`, or give
    the repository a new secret with `key rewrap --old-exported-keys`. Whoever has the
    export can read and write the repository. Export again after each `key rotate`.
    """
    if prints == (path is not None):
        raise UsageError("where shall the keys go?", hint="--to FILE, or --print")
    result = export_keys(invocation.context(), KeyExportRequest(path=path or ""))
    if prints and not invocation.flag("json"):
        click.echo(result.document, nl=False)
        return
    invocation.emit(result, "key-export/1")
