"""A run whose record cannot be written: what is said, and what the next run and its proof say."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pgrecall.app import opened
from pgrecall.app.context import RunContext, Surroundings
from pgrecall.app.journalling import RunEnd, write_run
from pgrecall.app.runs import RunsRequest, list_runs, verify_runs
from pgrecall.errors import StoreError, StoreFullError
from pgrecall.repository.identity import create_repository
from pgrecall.settings import RepositorySettings, ServerSettings, Settings
from pgrecall.store.faulty import Fault, FaultyStore
from pgrecall.store.local import LocalStore
from pgrecall.system.progress import NoProgress

NOW = datetime.now(UTC)
#: Opening the repository reads one object; the chain, and the month, get one each.
_PUTS = 2


def context(directory: Path, run_id: str) -> RunContext:
    settings = Settings(
        servers={"main": ServerSettings(name="main")},
        repositories={"main": RepositorySettings(name="main", path=str(directory))},
    )
    surroundings = Surroundings(
        environment={}, progress=NoProgress(), run_id=run_id, approve=lambda plan, question="": True
    )
    return RunContext(settings, surroundings)


@pytest.mark.parametrize(
    ("method", "at", "error"),
    [
        ("put", 1, StoreFullError),
        ("put", _PUTS, StoreFullError),
        ("read", 1, StoreError),  # of repository.json
        ("children", 1, StoreError),
        ("list", 1, StoreError),
    ],
)
def test_the_run_is_what_it_was(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
    at: int,
    error: type[StoreError],
) -> None:
    """A warning that says why; the journal stays whole; the next run sets right what is left."""
    os.makedirs(tmp_path / "repository")
    plain = LocalStore(str(tmp_path / "repository"))
    create_repository(plain, NOW)
    ids = [f"r-20261122T20163{number}Z-7k3q" for number in range(3)]
    write_run(context(tmp_path / "repository", ids[0]), RunEnd("backup", NOW))
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        fault = Fault("before", method=method, at=at, is_lasting=True,
                      error=lambda: error("it is away"))  # fmt: skip
        store = FaultyStore(plain, [fault])
        patch.setattr(opened, "open_store", lambda settings, environment: store)
        write_run(context(tmp_path / "repository", ids[1]), RunEnd("backup", NOW))
        assert fault.reached.is_set()
    assert [one.getMessage() for one in caplog.records] == [
        "the run is not in the journal: it is away"
    ]
    last = context(tmp_path / "repository", ids[2])
    proof = verify_runs(last)
    is_chained = at == _PUTS
    assert [one.code for one in proof.findings] == ["run-unlisted"] * is_chained
    assert proof.result == ("warn" if is_chained else "ok")
    write_run(last, RunEnd("backup", NOW))
    proof = verify_runs(last)
    assert (proof.result, proof.findings, proof.records) == ("ok", (), 2 + is_chained)
    listed = [one.run_id for one in list_runs(last, RunsRequest(since=NOW)).runs]
    assert listed == [ids[0], *ids[1:2] * is_chained, ids[2]]
