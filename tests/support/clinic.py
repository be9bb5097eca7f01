"""A product for doctor to look at, and a shell that types what it says."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pgrecall.errors import CheckFailedError
from tests.support.json_schema import require_valid
from tests.support.postgresql import Installation, PostgresServer, ServerFactory, Templates
from tests.support.product import Product

Found = dict[str, dict[str, Any]]


class Clinic:
    """``find`` runs doctor; ``type`` runs what a diagnosis says, as a shell does."""

    def __init__(self, product: Product) -> None:
        self.product = product
        self.text = product.config.read_text(encoding="utf-8")

    @property
    def server(self) -> PostgresServer:
        return self.product.server

    def find(self, *words: str) -> Found:
        """The diagnoses by code, the gravest of each; the exit status says if one fails."""
        done = self.product.cli("doctor", "--json", *words)
        assert done.stdout, done.stderr
        document = json.loads(done.stdout)
        require_valid(document)
        assert document["schema"] == "pgrecall/doctor/1", document
        wanted = CheckFailedError.exit_status if document["result"] == "fail" else 0
        assert done.returncode == wanted, (done.returncode, document["result"])
        found: Found = {}
        for one in document["diagnoses"]:
            assert one["evidence"] and one["cause"], one
            found.setdefault(one["code"], one)
        return found

    def type(self, diagnosis: dict[str, Any], *more: str) -> None:
        """Type every command; ``more`` goes behind those of pgrecall."""
        assert diagnosis["commands"], diagnosis
        for command in diagnosis["commands"]:
            # Looks ask nobody; what changes something does.
            looks = (" verify", " check", " drill", " runs ", " recoverable")
            is_own = "--config" in command and not any(word in command for word in looks)
            line = " ".join([command, *(more if is_own else ())])
            done = subprocess.run(
                ["/bin/sh", "-c", line], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                cwd=self.product.directory, timeout=120, check=False,
            )  # fmt: skip
            assert done.returncode == 0, (line, done.stdout, done.stderr)

    @contextmanager
    def configured(self, more: str = "", **replaced: str) -> Iterator[None]:
        """Settings of pgrecall for a while: tables behind, and lines that begin otherwise."""
        lines = []
        for line in self.text.splitlines():
            name = line.partition(" =")[0]
            lines.append(f"{name} = {replaced[name]}" if name in replaced else line)
        self.product.config.write_text("\n".join(lines) + "\n" + more, encoding="utf-8")
        try:
            yield
        finally:
            self.product.config.write_text(self.text, encoding="utf-8")

    def alter(self, **settings: str) -> None:
        """ALTER SYSTEM and reload."""
        for name, value in settings.items():
            self.server.sql(f"ALTER SYSTEM SET {name} = '{value}'")
        self.server.reload()

    def reset(self, *names: str) -> None:
        """Take ALTER SYSTEM back."""
        for name in names:
            self.server.sql(f"ALTER SYSTEM RESET {name}")
        self.server.reload()


@contextmanager
def opened_clinic(
    templates: Templates,
    installation: Installation,
    directories: pytest.TempPathFactory,
    **settings: Any,
) -> Iterator[Clinic]:
    """A server for all tests of a module that archives; pg_ctl can start it by itself."""
    factory = ServerFactory(templates, installation, directories.mktemp("server"))
    directory: Path = directories.mktemp("product")
    product = Product.start(factory, directory, **settings)
    server = product.server
    server.configure(port=server.port, unix_socket_directories=server.host)
    try:
        yield Clinic(product)
    finally:
        product.close()
        product.end(server.pgdata)
        factory.destroy()
