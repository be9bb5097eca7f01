"""One round of a storm: a server, its agent, writers, and things that go wrong at random."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from pgrecall.errors import InterruptedRunError
from pgrecall.system.processes import processes_under
from tests.soak.writers import Writer, prepare
from tests.support.postgresql import PostgresServer
from tests.support.product import Product

_DEADLINE_SECONDS = 60.0


class Agent:
    """The agent of a product (or what ``words`` run), started, killed and started again."""

    def __init__(self, product: Product, *words: str) -> None:
        self._product = product
        self._words = words or ("agent",)
        self._process: subprocess.Popen[bytes] | None = None
        self.log = product.directory / "agent.log"

    def start(self, *, wait: bool = True) -> None:
        """Start it; ``wait`` until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._product.command(*self._words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until the agent says that it runs."""
        deadline = time.monotonic() + _DEADLINE_SECONDS
        assert self._process is not None
        marker = f"pid={self._process.pid}"
        while marker not in self.text():
            assert self._process.poll() is None, self.text()[-4000:]
            assert time.monotonic() < deadline, f"the agent does not begin\n{self.text()[-4000:]}"
            time.sleep(0.02)

    def text(self) -> str:
        """What it has logged."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGKILL) -> int | None:
        """End it, and wait until it has ended; its exit status."""
        if self._process is None:
            return None
        self.send(signal.SIGCONT)
        self.send(number)
        return self._process.wait(_DEADLINE_SECONDS)


class Storm:
    """What goes wrong; each event leaves everything able to run on."""

    def __init__(self, product: Product, seed: int, *, has_agent: bool = True) -> None:
        self.random = random.Random(seed)
        self.product = product
        self.server: PostgresServer = product.server
        self.agent = Agent(product)
        self._has_agent = has_agent
        self._waits_for_agent = True
        self.writers = [Writer(self.server, number) for number in (1, 2)]
        self.done: list[str] = []

    def begin(self) -> None:
        """Table, backup, agent, writers."""
        prepare(self.server)
        self.product.backup()
        if self._has_agent:
            self.agent.start()
        for writer in self.writers:
            writer.start()

    def kinds(self) -> list[Callable[[], None]]:
        """The events that may come, by their weight."""
        kinds: list[Callable[[], None]] = [
            self._kill_server,
            self._crash_server,
            self._switch,
            self._switch,
            self._kill_client,
            self._take_store_away,
        ]
        if self._has_agent:
            kinds += [self._kill_agent, self._hold_agent, self._end_agent]
        return kinds

    def blow(self, events: int) -> None:
        """So many events, with short pauses between them."""
        kinds = self.kinds()
        for _ in range(events):
            time.sleep(self.random.uniform(0.0, 0.4))
            event = self.random.choice(kinds)
            self.done.append(event.__name__.strip("_"))
            event()

    def calm(self) -> None:
        """No more events; the writers end, and what they wrote is archived."""
        for writer in self.writers:
            writer.end()
        self.server.sql("SELECT pg_logical_emit_message(true, 'storm', 'the last')")
        name = self.server.value("SELECT pg_walfile_name(pg_current_wal_lsn())")
        self.server.sql("SELECT pg_switch_wal()")
        archive = self.product.archive()
        self.server.wait_until(lambda: archive.has(name) or self._wake(), f"{name} archived")

    def _wake(self) -> bool:
        """Have an archiver that has failed three times try again before its minute is over."""
        self.server.sql("SELECT pg_reload_conf()")
        time.sleep(0.2)
        return False

    def end(self) -> None:
        """End every process of the round."""
        self.agent.end()
        for writer in self.writers:
            writer.end()

    # --- events ----------------------------------------------------------------------

    def _kill_agent(self) -> None:
        self.agent.end(signal.SIGKILL)
        time.sleep(self.random.choice((0.0, 0.3, 1.0)))
        self.agent.start(wait=self._waits_for_agent and self.random.random() < 0.5)

    def _end_agent(self) -> None:
        # One that is still starting says so, or has not got so far as to hear it.
        is_starting = (InterruptedRunError.exit_status, -signal.SIGTERM)
        assert self.agent.end(signal.SIGTERM) in (0, *is_starting)
        self.agent.start(wait=self._waits_for_agent)

    def _hold_agent(self) -> None:
        self.agent.send(signal.SIGSTOP)
        time.sleep(self.random.uniform(0.2, 2.0))
        self.agent.send(signal.SIGCONT)

    def _kill_server(self) -> None:
        self.server.kill9()
        self.server.start()

    def _crash_server(self) -> None:
        self.server.stop("immediate")
        self.server.start()

    def _switch(self) -> None:
        self.server.sql("SELECT pg_switch_wal()")

    def _kill_client(self) -> None:
        """Whatever archives a segment at this moment, below the server that we started."""
        for pid in processes_under(self.server.pgdata):
            if b"push" in command_of(pid):
                _kill(pid)

    def _take_store_away(self) -> None:
        place = Path(self.product.repository.path)
        aside = place.with_name("repository aside")
        place.rename(aside)
        time.sleep(self.random.uniform(0.1, 1.0))
        aside.rename(place)


class SynchronousStorm(Storm):
    """WAL is received by streaming alone, in the agent or by ``wal receive``; commits wait."""

    def __init__(self, product: Product, seed: int) -> None:
        super().__init__(product, seed)
        self._waits_for_agent = seed % 2 == 0
        if not self._waits_for_agent:
            self.agent = Agent(product, "wal", "receive")

    def begin(self) -> None:
        """The receiver first: what the backup needs arrives through it."""
        self.agent.start(wait=False)
        self.wait_streaming()
        self.server.configure(synchronous_standby_names="pgrecall")
        self.server.reload()
        prepare(self.server)
        self.product.backup()
        checked = self.product.cli("check")
        assert checked.returncode == 0, checked.stdout + checked.stderr
        for writer in self.writers:
            writer.start()

    def wait_streaming(self) -> None:
        """Wait until the agent receives."""
        self.server.wait_until(
            lambda: self.server.sql(
                "SELECT 1 FROM pg_stat_replication WHERE application_name = 'pgrecall'"
                " AND state = 'streaming'"
            ),
            "the agent receives",
        )

    def kinds(self) -> list[Callable[[], None]]:
        """Nothing archives by command here."""
        return [
            self._kill_server,
            self._crash_server,
            self._switch,
            self._take_store_away,
            self._kill_agent,
            self._hold_agent,
            self._end_agent,
        ]

    def lose_everything(self) -> None:
        """The host of the server goes, in the middle of commits; its disk with it."""
        self.wait_streaming()
        time.sleep(self.random.uniform(0.0, 0.5))
        self.server.kill9()
        shutil.rmtree(self.server.pgdata)
        self.agent.end(self.random.choice((signal.SIGKILL, signal.SIGTERM)))
        for writer in self.writers:
            writer.end()


def command_of(pid: int) -> bytes:
    """The command line of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
