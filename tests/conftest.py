"""Fixtures of every test: real servers, and an environment without PG* variables."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support.matrix import matrix_directory
from tests.support.postgresql import (
    Installation,
    PostgresServer,
    ServerFactory,
    Templates,
    find_installations,
)

pytest_plugins = ["tests.support.s3_fixtures"]

ROOT = Path(__file__).resolve().parents[1]
EXPECTED_VARIABLE = "PGRECALL_EXPECT_VERSIONS"

_installations: dict[int, Installation] = {}


def pytest_configure(config: pytest.Config) -> None:
    """Find the versions; one that is expected and missing is an error, never a skip."""
    # How long an example takes depends on what else the machine does.
    hypothesis.settings.register_profile("untimed", deadline=None)
    hypothesis.settings.load_profile("untimed")
    # Ended by SIGTERM, the run still tears its servers down.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for name in [name for name in os.environ if name.startswith("PG") and "PGRECALL" not in name]:
        del os.environ[name]
    _installations.update(find_installations(matrix_directory(ROOT)))
    expected = {int(word) for word in os.environ.get(EXPECTED_VARIABLE, "").split(",") if word}
    missing = sorted(expected - set(_installations))
    if missing:
        raise pytest.UsageError(
            f"PostgreSQL {', '.join(map(str, missing))} expected ({EXPECTED_VARIABLE}) but not "
            f"found in {matrix_directory(ROOT)}: python -m tests.support.matrix install"
        )


@pytest.fixture(autouse=True)
def logs_as_found() -> Iterator[None]:
    """A command that runs in this process sets logs up; the next test must not see it."""
    logger = logging.getLogger("pgrecall")
    handlers, level, propagates = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logger.propagate = propagates


def pytest_report_header() -> str:
    """Say which versions the run covers."""
    return f"PostgreSQL: {', '.join(map(str, _installations))}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for ``installation`` runs once for every version that is installed.

    The embedded 18 belongs to the ordinary tests, the others to those marked ``matrix``.
    """
    if "installation" in metafunc.fixturenames:
        metafunc.parametrize(
            "installation",
            [
                pytest.param(
                    found, id=f"pg{major}", marks=() if major == 18 else pytest.mark.matrix
                )
                for major, found in _installations.items()
            ],
            scope="session",
        )


@pytest.fixture(scope="session")
def installations() -> dict[int, Installation]:
    """Every installed version by major number, newest first; 18 is always there."""
    return dict(_installations)


@pytest.fixture(scope="session")
def pg_templates(tmp_path_factory: pytest.TempPathFactory) -> Templates:
    """Fresh clusters, made once in a session for each version and kind."""
    return Templates(tmp_path_factory.mktemp("templates"))


@pytest.fixture
def pg_factory(pg_templates: Templates, tmp_path: Path) -> Iterator[ServerFactory]:
    """``pg_factory(installation=None, *, name, start, segment_mib, checksums, **settings)``.

    All servers are ended when the test ends.
    """
    factory = ServerFactory(pg_templates, _installations[18], tmp_path)
    try:
        yield factory
    finally:
        factory.destroy()


@pytest.fixture
def pg(pg_factory: ServerFactory) -> PostgresServer:
    """A running PostgreSQL 18 that is ready to archive (its archive_command is still empty)."""
    return pg_factory()
