"""``version``: what is installed."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import msgspec

from pgrecall import __version__
from pgrecall.agent.client_file import client_kind
from pgrecall.cli.frame import Example, framed_command
from pgrecall.cli.invocation import Invocation

_PARTS = ("psycopg", "obstore", "backports.zstd", "lz4", "blake3", "msgspec", "numpy")


class VersionResult(msgspec.Struct, frozen=True):
    """Versions of pgrecall, Python and the libraries that matter; empty: not installed.

    ``client``: how the client for images without Python is linked (``static``,
    ``dynamic``); empty when there is none.
    """

    pgrecall: str
    python: str
    platform: str
    libraries: dict[str, str]
    client: str = ""


@framed_command(
    "version",
    examples=(
        Example("pgrecall version", "what a bug report should say"),
        Example("pgrecall version --json", "the same for a program"),
    ),
)
def command(invocation: Invocation) -> None:
    """Show the version of pgrecall, of Python and of the libraries it stands on."""
    libraries = {name: _installed(name) for name in _PARTS}
    result = VersionResult(
        pgrecall=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        libraries={name: found for name, found in libraries.items() if found},
        client=client_kind(),
    )
    invocation.emit(result, "version/1")


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
