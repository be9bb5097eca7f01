"""The demonstration as people see it: numbered steps, commands, times, the proof, the figures."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table
from rich.text import Text

from pgrecall.app.demo_report import DemoReport, Kept
from pgrecall.cli.rendering import duration, size

_WIDTH = 80
_INDENT = "   "
_TIME_COLUMNS = 9
_SHOWN_DIGITS = 14


class SilentStory:
    """With --json: nothing until the end."""

    def opening(self, directory: str, version: str, *, keep: bool) -> None:
        """Nothing."""

    def step(self, title: str) -> None:
        """Nothing."""

    def doing(self, what: str) -> None:
        """Nothing."""

    def command(self, line: str) -> None:
        """Nothing."""

    def fact(self, text: str, seconds: float | None = None) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class ToldStory:
    """On standard output; on a terminal with colours and a spinner, elsewhere as plain lines."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stdout, highlight=False)
        self._width = min(self._console.width, _WIDTH) if self._console.is_terminal else _WIDTH
        self._steps = 0
        self._status: Status | None = None

    def opening(self, directory: str, version: str, *, keep: bool) -> None:
        """What is going to happen, and where."""
        end = "stays afterwards" if keep else "is removed at the end"
        self._write(
            "[bold]pgrecall demo[/bold]: a server is backed up, loses a table, and comes back\n"
        )
        self._write(
            f"PostgreSQL {escape(version)} and all files live in a directory that {end};"
            "\ncommands are shown as they would be typed there:"
        )
        self._write(f"{_INDENT}{escape(directory)}")
        self._write("It takes half a minute. Ctrl-C ends it at any time, leaving nothing behind.")

    def step(self, title: str) -> None:
        """A number and a title."""
        self._steps += 1
        self._write(f"\n[bold cyan]{self._steps}[/bold cyan]  [bold]{escape(title)}[/bold]")

    def doing(self, what: str) -> None:
        """A spinner, where there is a terminal."""
        self.close()
        if self._console.is_terminal:
            self._status = self._console.status(f"[dim]{escape(what)}[/dim]", spinner="dots")
            self._status.start()

    def command(self, line: str) -> None:
        """As it would be typed."""
        self._write(f"{_INDENT}[green]$ {escape(line)}[/green]")

    def fact(self, text: str, seconds: float | None = None) -> None:
        """One line, the time at its end."""
        line = Text(f"{_INDENT}{text}")
        if seconds is not None:
            room = self._width - _TIME_COLUMNS
            line.pad_right(max(0, room - len(line)))
            line.append(f"{duration(seconds):>{_TIME_COLUMNS}}", style="dim")
        self.close()
        self._console.print(line, soft_wrap=True)

    def close(self) -> None:
        """Give the terminal back; may be called several times."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _write(self, markup: str) -> None:
        self.close()
        self._console.print(markup, soft_wrap=True)

    def end(self, report: DemoReport) -> None:
        """Proof, figures, and where to read on."""
        self.close()
        self._proofs(report)
        self._figures(report)
        if report.kept is not None:
            self._keeping(report.kept)
        self._write(
            "\nYour own server:  pgrecall init --path /where/backups/go, then pgrecall check\n"
            "Read on:          pgrecall --help, README.md, docs/recovery.md, docs/format.md"
        )

    def _proofs(self, report: DemoReport) -> None:
        self._console.print(Text(_row(_INDENT, "known", "found"), style="dim"))
        for proof in report.proofs:
            line = Text(_row(_INDENT + proof.what, _cut(proof.known), _cut(proof.found)) + "  ")
            if proof.is_proven:
                line.append("same", style="green")
            else:
                line.append("DIFFERS", style="bold red")
            self._console.print(line, soft_wrap=True)
        if report.is_proven:
            self._write(
                f"\n{_INDENT}[bold green]Proven:[/bold green] the table is back as it was just"
                f" before transaction {report.accident_xid},\n{_INDENT}and the server goes on"
                " untouched."
            )
        else:
            self._write(
                f"\n{_INDENT}[bold red]NOT proven:[/bold red] what came back is not what was known."
            )

    def _figures(self, report: DemoReport) -> None:
        sizes, times, loss = report.sizes, report.times, report.loss
        self.step("In figures")
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column(_INDENT)
        for heading in ("raw", "stored", "time"):
            table.add_column(heading, justify="right")
        table.add_row(
            f"{_INDENT}full backup, {sizes.backup_files:,} files",
            size(sizes.backup_raw_bytes),
            size(sizes.backup_stored_bytes),
            duration(sizes.backup_seconds),
        )
        table.add_row(
            f"{_INDENT}WAL archive, {sizes.wal_segments} segments",
            size(sizes.wal_raw_bytes),
            size(sizes.wal_stored_bytes),
        )
        table.add_row(f"{_INDENT}the last WAL archived", "", "", duration(times.archive_seconds))
        table.add_row(f"{_INDENT}files restored", "", "", duration(times.restore_seconds))
        table.add_row(f"{_INDENT}WAL replayed", "", "", duration(times.recovery_seconds))
        self._console.print(table)
        self._write(
            f"\n{_INDENT}RPO reached: [bold]{loss.rows} rows lost[/bold]; the last commit that"
            f" came back was\n{_INDENT}             {loss.margin_seconds * 1000:.0f} ms before"
            " the accident's"
        )
        self._write(
            f"{_INDENT}RTO reached: [bold]{duration(times.rto_seconds)}[/bold] from the decision"
            " to a server open for writing"
        )

    def _keeping(self, kept: Kept) -> None:
        self._write(f"\n[bold]Kept[/bold] in {escape(kept.directory)}; both servers run.")
        lines = (
            ("# the restored server, with the orders", kept.connect_to_restored),
            ("# the server that had the accident", kept.connect_to_server),
            ("# at the end", *kept.stop, kept.remove),
        )
        for comment, *commands in lines:
            self._write(f"[dim]{comment}[/dim]")
            for command in commands:
                self._write(f"[green]{escape(command)}[/green]")


def _row(what: str, known: str, found: str) -> str:
    return f"{what:<40}{known:>15}{found:>16}"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_DIGITS else text[: _SHOWN_DIGITS - 3] + "..."
