"""What commands ask of a store that holds many backups: each record once, or only the newest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from benchmarks.catalog_repository import build, year_before_now

from pgrecall.app import opened
from pgrecall.app.context import RunContext, Surroundings
from pgrecall.app.estimating import EstimateResult, run_estimate
from pgrecall.app.repositories import RepositoriesResult, run_repositories
from pgrecall.repository.opening import open_store
from pgrecall.settings import RepositorySettings, ServerSettings, Settings
from pgrecall.store.base import Store
from pgrecall.store.faulty import FaultyStore
from pgrecall.system.progress import NoProgress

BACKUPS = 300
#: Listings, the identity, and the fifty records of holds that the repository was given.
AROUND = 120

Ask = Callable[[Callable[[RunContext], object]], tuple[object, Counter[str]]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("many") / "repository"
    build(path, year_before_now(BACKUPS, 2 * BACKUPS))
    return path


@pytest.fixture
def ask(root: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Calls a command; its result, and how often each kind of record was read, or all the rest."""
    stores: list[FaultyStore] = []

    def recording(settings: RepositorySettings, environment: Mapping[str, str]) -> Store:
        stores.append(FaultyStore(open_store(settings, environment)))
        return stores[-1]

    def act(command: Callable[[RunContext], object]) -> tuple[object, Counter[str]]:
        settings = Settings(
            servers={"main": ServerSettings(name="main")},
            repositories={"one": RepositorySettings(name="one", path=str(root))},
        )
        surroundings = Surroundings(
            environment={}, progress=NoProgress(), run_id="r-test",
            approve=lambda plan, question="": True,
        )  # fmt: skip
        stores.clear()
        result = command(RunContext(settings, surroundings))
        calls = [call for store in stores for call in store.calls]
        kinds = Counter(
            key.split("/")[2]
            if method == "read" and key.startswith(("servers/main/backups", "servers/main/runs"))
            else "rest"
            for method, key in calls
        )
        return result, kinds

    monkeypatch.setattr(opened, "open_store", recording)
    return act


def test_repositories_reads_each_completion_record_once(ask: Ask) -> None:
    result, read = ask(run_repositories)
    assert isinstance(result, RepositoriesResult)
    assert len(result.backups) == BACKUPS
    assert (read["backups"], read["runs"]) == (BACKUPS, 0)
    assert read["rest"] < AROUND


def test_estimate_looks_at_the_newest_backups_only(ask: Ask) -> None:
    result, read = ask(run_estimate)
    assert isinstance(result, EstimateResult)
    assert result.measured.backup_stored_bytes == 1 << 30
    assert result.measured.backup_interval_seconds == pytest.approx(365 * 86400 / BACKUPS, rel=0.02)
    assert 60 <= read["backups"] < 100
    assert read["runs"] <= BACKUPS  # for the pace of restores in the last year
    assert read["rest"] < AROUND
