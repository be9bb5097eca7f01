"""The observer, the periodic work, and what an agent is made of."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pgrecall.agent.component import Facts
from pgrecall.agent.observer import Observer
from pgrecall.agent.periodic import Periodic
from pgrecall.app.agent_composition import Joints, blueprints, place_of
from pgrecall.errors import SettingsError, StoreError
from pgrecall.model.runs import Trigger
from pgrecall.repository.catalog import Catalog
from pgrecall.repository.journal import Journal
from pgrecall.settings import load_settings
from pgrecall.store.faulty import Fault, FaultyStore
from pgrecall.store.memory import MemoryStore
from pgrecall.system.clock import SystemClock
from tests.unit.test_catalog import IDS, completion
from tests.unit.test_journal import record

NOW = datetime.now(UTC)


def observer(store: MemoryStore | FaultyStore) -> Observer:
    return Observer("main", lambda: store, SystemClock())


def run(run_id: str, ended_at: datetime, outcome: str, missed: int = 0) -> object:
    return record(
        run_id,
        ended_at,
        outcome=outcome,
        trigger=Trigger(by="schedule", missed=missed),
    )


def test_it_sees_the_last_good_backup() -> None:
    store = MemoryStore()
    seen = observer(store)
    seen.look()
    assert seen.facts()["last_backup_id"] is None
    catalog = Catalog(store, "main")
    catalog.add(completion(IDS[0]))
    catalog.add(completion(IDS[1], worst="fail"))
    store.put(f"servers/main/backups/{IDS[2]}/pack-0000", [b"begun"])
    seen.look()
    facts = seen.facts()
    assert facts["last_backup_id"] == IDS[0]
    assert (facts["last_backup_raw_bytes"], facts["error"]) == (10, None)


def test_a_damaged_record_hides_no_older_backup() -> None:
    store = MemoryStore()
    Catalog(store, "main").add(completion(IDS[0]))
    store.put(f"servers/main/backups/{IDS[1]}/complete.json", [b"{}"])
    seen = observer(store)
    seen.look()
    assert seen.facts()["last_backup_id"] == IDS[0]


def test_it_counts_the_runs_of_a_week() -> None:
    store = MemoryStore()
    journal = Journal(store, "main")

    def stamp(days: float) -> tuple[str, datetime]:
        at = NOW - timedelta(days=days)
        return f"r-{at:%Y%m%dT%H%M%SZ}-7k3q", at

    for days, outcome, missed in ((8.0, "fail", 9), (2.0, "fail", 2), (1.0, "ok", 1)):
        run_id, at = stamp(days)
        journal.add(run(run_id, at, outcome, missed), "r1", "h")  # type: ignore[arg-type]
    seen = observer(store)
    seen.look()
    facts = seen.facts()
    assert facts["run:backup:outcome"] == "ok"
    assert (facts["run:backup:failed"], facts["run:backup:missed"]) == (1, 3)


def test_a_store_that_is_away_is_a_fact_and_what_was_seen_stays() -> None:
    store = MemoryStore()
    Catalog(store, "main").add(completion(IDS[0]))
    faulty = FaultyStore(store)
    seen = observer(faulty)
    seen.look()
    looked_at = seen.facts()["looked_at"]
    faulty.plan.append(Fault("before", is_lasting=True))
    seen.look()
    facts = seen.facts()
    assert facts["error"] == "a fault was injected"
    assert (facts["last_backup_id"], facts["looked_at"]) == (IDS[0], looked_at)
    faulty.plan.clear()
    seen.look()
    assert seen.facts()["error"] is None


def test_periodic_work_is_repeated_and_its_errors_are_facts() -> None:
    stop = threading.Event()
    calls = []

    def work() -> Facts:
        calls.append(1)
        if len(calls) == 2:
            raise StoreError("away")
        if len(calls) == 4:
            stop.set()
        return {"relations": len(calls)}

    periodic = Periodic("names", work, 0.001, SystemClock())
    periodic.run(stop)
    facts = periodic.facts()
    assert (facts["relations"], facts["done_total"], facts["error"]) == (4, 3, None)


# --- the composition ------------------------------------------------------------------


def names(tmp_path: Path, text: str) -> list[str]:
    config = tmp_path / "pgrecall.toml"
    config.write_text(f'[repositories.one]\npath = "{tmp_path}"\n{text}', encoding="utf-8")
    place = place_of(load_settings(str(config), {}), None, {})
    joints = Joints({}, None, lambda _: None, list, lambda _: {}, lambda *_: None, lambda _: {})  # type: ignore[arg-type]
    return [blueprint.name for blueprint in blueprints(place, joints)]


ALWAYS = ["schedule", "observer", "configuration"]


def test_beside_pgdata_it_archives(tmp_path: Path) -> None:
    text = '[servers.main]\ndata_directory = "/pgdata"\n[agent]\nmetrics_address = ":9187"\n'
    assert names(tmp_path, text) == [
        "pusher", "fetcher", "listener", *ALWAYS, "names", "rollups", "metrics",
    ]  # fmt: skip


def test_on_another_host_it_only_receives(tmp_path: Path) -> None:
    text = (
        '[servers.main]\ndata_directory = "/pgdata"\nhost = "db.example"\n'
        "[receive]\nis_enabled = true\n[agent]\nnames_seconds = 0\n"
    )
    assert names(tmp_path, text) == ["receiver", *ALWAYS, "rollups"]


@pytest.mark.parametrize(
    "text",
    [
        '[servers.main]\ndata_directory = "/p"\n[agent]\nmetrics_address = "9187"\n',
        '[servers.main]\ndata_directory = "/p"\n[schedule]\nbackup = "x"\n',
        '[servers.one]\ndata_directory = "/p"\n[servers.two]\ndata_directory = "/q"\n',
    ],
)
def test_what_cannot_be_run_is_refused_at_once(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError):
        names(tmp_path, text)
