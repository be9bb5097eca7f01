"""Runs a module as an ordinary user, whatever the modes of the clone: ``... launch pytest -q``.

``python -m tests.support.launch MODULE ARGUMENT...`` runs ``python -m MODULE ARGUMENT...`` in the
root of the checkout. As root that happens in a copy of the environment and of the checkout that an
unprivileged user can read, since PostgreSQL refuses to run as root; caches go to a temporary
directory. PostgreSQL versions of the matrix that the user cannot reach are copied as well.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT / "src") not in sys.path:
    sys.path.insert(0, str(ROOT / "src"))

from pgrecall.errors import ReportedError  # noqa: E402 - the path comes first
from pgrecall.system.signals import signals_as_errors  # noqa: E402
from pgrecall.system.unprivileged import run_unprivileged  # noqa: E402
from tests.support.matrix import (  # noqa: E402
    MATRIX_VARIABLE,
    MatrixError,
    matrix_directory,
    ready_for_everybody,
)


def main(argv: list[str]) -> int:
    """Run ``argv`` (module and arguments) and return its exit status."""
    if not argv:
        print("usage: python -m tests.support.launch MODULE [ARGUMENT...]", file=sys.stderr)
        return 2
    arguments = ["-m", *argv]
    if argv[0] == "pytest" and os.geteuid() == 0:
        arguments += ["-p", "no:cacheprovider"]
    try:
        with signals_as_errors(), ready_for_everybody(matrix_directory(ROOT)) as matrix:
            environment = {MATRIX_VARIABLE: str(matrix)} if matrix else {}
            return run_unprivileged(
                arguments,
                copies={"checkout": ROOT},
                working_directory="checkout",
                environment=environment,
            )
    except ReportedError as error:
        print(f"{error}\nHINT: {error.hint}", file=sys.stderr)
        return error.exit_status
    except MatrixError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
