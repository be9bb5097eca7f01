"""Files that gpg encrypted, read through it."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from pgrecall.errors import ToolMissingError
from pgrecall.further_errors import LoadError
from pgrecall.system.held_signals import signals_held

SUFFIXES = (".gpg", ".pgp", ".asc")
_PATIENCE_SECONDS = 10.0


@contextmanager
def decrypted(path: str, passphrase: str) -> Iterator[IO[bytes]]:
    """What is in a file that gpg has encrypted, as a stream, for as long as the block lasts.

    ``passphrase`` empty: gpg uses the keys and the agent of this user. It may be left before its
    end. Raises ToolMissingError, LoadError when gpg cannot decrypt it or finds it damaged.
    """
    program = shutil.which("gpg")
    if program is None:
        raise ToolMissingError(
            f"{path} is encrypted, and there is no gpg on this host",
            hint="install GnuPG, or decrypt the file elsewhere",
        )
    words = [program, "--batch", "--quiet", "--no-tty", "--decrypt"]
    secret, given = -1, -1
    if passphrase:
        secret, given = os.pipe()
        words[-1:-1] = ["--pinentry-mode", "loopback", "--passphrase-fd", str(secret)]
    try:
        with signals_held():
            process = subprocess.Popen(
                [*words, "--", path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(secret,) if passphrase else (),
                start_new_session=True,
            )
        if passphrase:
            os.write(given, passphrase.encode() + b"\n")
    finally:
        for descriptor in (secret, given):
            if descriptor >= 0:
                os.close(descriptor)
    assert process.stdout is not None
    assert process.stderr is not None
    errors, said = process.stderr, list[bytes]()
    listener = threading.Thread(
        target=lambda: said.append(errors.read()), name="gpg-errors", daemon=True
    )
    listener.start()
    try:
        yield process.stdout
        is_over = not process.stdout.read(1)
    except BaseException:
        process.kill()
        raise
    else:
        if not is_over:
            process.kill()
        status = process.wait()
        listener.join(_PATIENCE_SECONDS)
        if is_over and status != 0:
            lines = b"".join(said).decode(errors="replace").strip().splitlines()
            raise LoadError(
                f"gpg cannot decrypt {path}: " + "; ".join(lines[-3:]),
                hint="give the passphrase (--passphrase env:NAME or file:PATH), or the key to the"
                " gpg of this user; a file that was cut off cannot be used",
            )
    finally:
        process.wait()
        listener.join(_PATIENCE_SECONDS)
        process.stdout.close()
        process.stderr.close()
