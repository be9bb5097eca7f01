"""``init``: a configuration file and a repository."""

from __future__ import annotations

import os

import click
from msgspec import structs

from pgrecall.app.initialize import run_init
from pgrecall.app.requests import InitRequest
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation
from pgrecall.cli.journalling import journalled
from pgrecall.cli.words import command_words
from pgrecall.errors import UsageError
from pgrecall.settings.loading import CONFIG_VARIABLE
from pgrecall.settings.sections import RepositorySettings

_SERVER_KEYS = (
    "data_directory", "host", "port", "user", "database", "password", "bin_directory",
)  # fmt: skip
_COMMAND_KEYS = ("wrap_command", "unwrap_command")


@framed_command(
    "init",
    changes=True,
    examples=(
        Example("pgrecall init --path /backup/main", "find the server; keep backups in /backup"),
        Example(
            "pgrecall init --server shop --host /run/postgresql --port 5433 --path /backup/shop",
            "name the server, and say which one",
        ),
        Example(
            "pgrecall init --store s3 --bucket backups --endpoint https://s3.example.com "
            "--access-key env:S3_KEY --secret-key file:/etc/pgrecall/s3",
            "keep backups in S3; secrets are named, never written",
        ),
        Example(
            "pgrecall init --path /backup/main --encryption passphrase "
            "--passphrase file:/etc/pgrecall/passphrase",
            "encrypt all that is stored; keep the file, and `pgrecall key export`, elsewhere too",
        ),
        Example("pgrecall init --path /backup/main --dry-run", "show what would be written"),
    ),
)
@click.option("--data-directory", type=click.Path(), help="PGDATA. [default: searched for]")
@click.option("--host", help="Socket directory or host. [default: searched for]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port. [default: searched for]")
@click.option("--user", help="Role to connect as.")
@click.option("--database", help="Database to connect to.")
@click.option("--password", help="Where the password is: env:NAME or file:/path.")
@click.option("--bin-directory", type=click.Path(), help="PostgreSQL's programs.")
@click.option("--store", type=click.Choice(RepositorySettings.fields["store"].choices))
@click.option("--path", type=click.Path(), help="Directory of a local repository.")
@click.option("--bucket", help="Bucket or container.")
@click.option("--prefix", help="What keys in the bucket begin with.")
@click.option("--endpoint", help="URL of the object store.")
@click.option("--region", help="Region of the bucket.")
@click.option("--path-style", is_flag=True, help="Bucket in the path of the URL.")
@click.option("--ca-file", type=click.Path(), help="Certificates to trust.")
@click.option("--allow-http", is_flag=True, help="Accept an endpoint without TLS.")
@click.option("--access-key", help="Where the access key is: env:NAME or file:/path.")
@click.option("--secret-key", help="Where the secret key is: env:NAME or file:/path.")
@click.option("--account", help="Storage account (Azure).")
@click.option("--account-key", help="Where the account's key is: env:NAME or file:/path.")
@click.option("--credentials-file", help="Where Google's JSON is: file:/path.")
@click.option(
    "--encryption",
    type=click.Choice(RepositorySettings.fields["encryption"].choices[1:4]),
    help="Encrypt the repository; what opens its keys. Cannot be changed to none later.",
)
@click.option("--passphrase", help="Where the passphrase is: env:NAME or file:/path.")
@click.option("--age-identity", help="Where the age identity is: env:NAME or file:/path.")
@click.option("--age-recipient", "age_recipients", multiple=True, help="Who can open the keys.")
@click.option("--wrap-command", help="Program and arguments that wrap a key, as in a shell.")
@click.option("--unwrap-command", help="Program and arguments that unwrap a key.")
@click.option("--overwrite", is_flag=True, help="Replace an existing configuration file.")
@journalled("init", connects=True)
def command(
    invocation: Invocation, *, overwrite: bool, **options: str | int | bool | tuple[str, ...] | None
) -> None:
    """Write a commented pgrecall.toml and make the repository.

    Asks nothing that it can find out: data directory, port, socket and version
    are asked from the server that runs on this host; a stopped one needs
    --data-directory or PGDATA. --server and --repository are the names that both
    get (main), --config is the file to write. The server is not changed: what is
    left to do there is printed, ready to paste. A second run keeps what there is.
    """
    given = {name: value for name, value in options.items() if value not in (None, False, ())}
    server_values: dict[str, str | int] = {}
    repository_values: dict[str, str | bool | tuple[str, ...]] = {}
    for name, value in given.items():
        if name in _SERVER_KEYS:
            server_values[name] = value if isinstance(value, int) else str(value)
        elif name in _COMMAND_KEYS:
            repository_values[name] = command_words(name, str(value))
        elif isinstance(value, bool | tuple):
            repository_values[name] = value
        else:
            repository_values[name] = str(value)
    if repository_values.get("store", "local") == "local" and "path" not in repository_values:
        raise UsageError(
            "where shall backups be kept?",
            hint="--path DIRECTORY, best on another disk or host; or --store s3 --bucket NAME",
        )
    request = InitRequest(
        config_path=invocation.text("config") or os.environ.get(CONFIG_VARIABLE) or "pgrecall.toml",
        server=invocation.text("server") or "main",
        repository=invocation.text("repository") or "main",
        server_values=server_values,
        repository_values=repository_values,
        overwrite=overwrite,
        dry_run=invocation.flag("dry_run"),
    )
    result = run_init(invocation.surroundings(), request)
    if not request.dry_run:
        # From here on there are settings, and a repository that keeps what was run.
        invocation.adopt_settings(request.config_path, server=request.server)
    if invocation.flag("json"):
        invocation.emit(result, "init/1")
        return
    # Lines to paste stand by themselves: in a table they would be cut or folded.
    invocation.emit(structs.replace(result, done=(), steps=(), archive_command=""), "init/1")
    for line in result.done:
        click.echo(line)
    for step in result.steps:
        click.echo(f"\n{step.why}:")
        for line in step.lines:
            click.echo(f"    {line}")
