"""The frame of every command: options that exist everywhere, help with examples, lazy groups."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import click

from pgrecall.cli.invocation import Invocation
from pgrecall.errors import UsageError
from pgrecall.settings.declare import did_you_mean
from pgrecall.settings.sections import LogSettings

_COMMANDS = "pgrecall.cli.commands"
_LEVELS = LogSettings.fields["level"].choices


class Example(NamedTuple):
    """One line that can be typed, and what it does."""

    command: str
    meaning: str


class LazyCommand(NamedTuple):
    """Where a command lives, and its help in short: known without importing it."""

    module: str
    attribute: str
    help: str


def _global_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--config"],
            type=click.Path(),
            help="Configuration file. [env: PGRECALL_CONFIG; default: ./pgrecall.toml, then "
            "~/.config/pgrecall/pgrecall.toml, then /etc/pgrecall/pgrecall.toml]",
        ),
        click.Option(["--server"], help="Name of the server; needed when there are several."),
        click.Option(["--repository"], help="Name of the repository, instead of all."),
        click.Option(["--json"], is_flag=True, help="Write JSON to standard output."),
        click.Option(["--log-level"], type=click.Choice(_LEVELS), help="What is logged."),
    ]


def _changing_options() -> list[click.Parameter]:
    return [
        click.Option(["--dry-run"], is_flag=True, help="Show the plan, change nothing."),
        click.Option(["--yes"], is_flag=True, help="Do not ask for a confirmation."),
    ]


_GLOBAL_NAMES = frozenset(
    option.name for option in (*_global_options(), *_changing_options()) if option.name
)


class _Framed(click.Command):
    """What commands and groups share: the options everywhere, and the examples."""

    examples: Sequence[Example] = ()

    def take_invocation(self, ctx: click.Context) -> Invocation:
        """Merge this level's global options into what stood before the command."""
        given = {name: ctx.params.pop(name) for name in list(ctx.params) if name in _GLOBAL_NAMES}
        before = ctx.obj if isinstance(ctx.obj, Invocation) else Invocation()
        merged = before.merged(given)
        merged.start_log()
        ctx.obj = merged
        return merged

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Own options first, those that exist everywhere apart."""
        own: list[tuple[str, str]] = []
        everywhere: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                (everywhere if parameter.name in _GLOBAL_NAMES else own).append(record)
        for title, records in (("Options", own), ("Options everywhere", everywhere)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples: each a line that can be copied."""
        del ctx
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}# {example.meaning}\n")
                    formatter.write(f"{'':>{formatter.current_indent}}{example.command}\n")


class FramedCommand(_Framed):
    """A command; ``changes``: it has --dry-run and --yes."""

    def __init__(
        self, *args: Any, examples: Sequence[Example], changes: bool = False, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.examples = examples
        self.changes = changes
        self.params += _global_options() + (_changing_options() if changes else [])

    def invoke(self, ctx: click.Context) -> Any:
        """Hand the merged options to the callback as the context's object."""
        invocation = self.take_invocation(ctx)
        if not self.changes:
            invocation.refuse_unless_changing(ctx.command_path)
        return super().invoke(ctx)


class LazyGroup(_Framed, click.Group):
    """A group whose commands are imported when they are called."""

    def __init__(
        self,
        *args: Any,
        table: Mapping[str, LazyCommand | LazyGroup],
        examples: Sequence[Example] = (),
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.table = table
        self.examples = examples
        self.params += _global_options() + _changing_options()

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table."""
        del ctx
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command, or None for a name that the table does not have."""
        del ctx
        entry = self.table.get(cmd_name)
        if entry is None or isinstance(entry, LazyGroup):
            return entry
        module = importlib.import_module(f"{_COMMANDS}.{entry.module}")
        found = getattr(module, entry.attribute)
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown word is answered with the nearest command."""
        if args[0] not in self.table and not args[0].startswith("-"):
            raise UsageError(
                f"{ctx.command_path} has no command {args[0]!r}"
                + did_you_mean(args[0], self.table),
                hint=f"{ctx.command_path} --help lists them",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table: help imports nothing."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help or "") for name, entry in self.table.items()])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options, then the commands."""
        _Framed.format_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        """Keep the options that stand before the command."""
        self.take_invocation(ctx)
        return super().invoke(ctx)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Names and short help from the table: completion imports nothing either."""
        names = [
            click.shell_completion.CompletionItem(name, help=entry.help)
            for name, entry in self.table.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)


def framed_command(
    name: str, *, examples: Sequence[Example], changes: bool = False
) -> Callable[[Callable[..., Any]], FramedCommand]:
    """Make a function a command; its first argument is the Invocation, its docstring the help."""

    def decorate(function: Callable[..., Any]) -> FramedCommand:
        made = click.command(name, cls=FramedCommand, examples=examples, changes=changes)(
            click.pass_obj(function)
        )
        assert isinstance(made, FramedCommand)
        return made

    return decorate
