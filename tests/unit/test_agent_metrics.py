"""What /metrics and /healthz say, and where."""

from __future__ import annotations

import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pgrecall.agent.metrics import FACT_METRICS, LABELLED, AgentCollector, exposition
from pgrecall.agent.metrics_server import MetricsServer, parse_address
from pgrecall.agent.supervisor import ComponentStatus
from pgrecall.errors import AgentPlaceError, SettingsError

NOW = datetime(2026, 11, 22, 20, 16, 37, tzinfo=UTC)
ROOT = Path(__file__).parents[2]


def status(name: str, state: str = "running", **facts: object) -> ComponentStatus:
    return ComponentStatus(name=name, state=state, started_at=NOW, facts=facts)  # type: ignore[arg-type]


STATUSES = [
    status("pusher", lag_bytes=16 << 20, lag_segments=1, failing=True, pushed_total=7),
    status("listener", "waiting"),
    status(
        "observer",
        last_backup_at=(NOW - timedelta(hours=2)).isoformat(),
        newest_lsn="1/0",
        newest_commit_at=None,
        **{
            "run:backup:outcome": "fail",
            "run:backup:ended_at": NOW.isoformat(),
            "run:backup:failed": 2,
            "run:backup:missed": 3,
        },
    ),
]


def collector(statuses: list[ComponentStatus] | None = None) -> AgentCollector:
    return AgentCollector("shop (old)", lambda: statuses or STATUSES, lambda: NOW)


def scraped(text: str) -> dict[tuple[str, str], float]:
    """Value by name and the label other than server."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("server") == "shop (old)"
            found[sample.name, "".join(labels.values())] = sample.value
    return found


def test_facts_become_metrics() -> None:
    found = scraped(exposition(collector()).decode())
    assert found["pgrecall_archive_lag_bytes", ""] == 16 << 20
    assert found["pgrecall_archive_failing", ""] == 1
    assert found["pgrecall_archive_pushed_total", ""] == 7
    assert found["pgrecall_component_up", "pusher"] == 1
    assert found["pgrecall_component_up", "listener"] == 0
    assert found["pgrecall_backup_last_age_seconds", ""] == 7200
    assert found["pgrecall_backup_last_timestamp_seconds", ""] == NOW.timestamp() - 7200
    assert found["pgrecall_archived_lsn_bytes", ""] == 1 << 32
    assert found["pgrecall_run_last_success", "backup"] == 0
    assert found["pgrecall_runs_missed", "backup"] == 3
    assert ("pgrecall_newest_commit_age_seconds", "") not in found, "what is not known is absent"


def test_every_metric_has_one_name_and_a_prefix() -> None:
    names = [metric.name for metric in FACT_METRICS] + list(LABELLED)
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z_]+", name) for name in names)


def test_every_metric_is_documented() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    names = {f"pgrecall_{name}" for name in [*(one.name for one in FACT_METRICS), *LABELLED]}
    assert set(re.findall(r"`(pgrecall_[a-z_]+)`", page)) == names


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":9187", ("127.0.0.1", 9187)),
        ("0.0.0.0:9187", ("0.0.0.0", 9187)),
        ("[::1]:9187", ("::1", 9187)),
        ("/run/metrics.sock", "/run/metrics.sock"),
    ],
)
def test_addresses(text: str, address: object) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["9187", "host", "host:", "host:x", "host:99999", "metrics.sock"])
def test_bad_addresses_are_named(text: str) -> None:
    with pytest.raises(SettingsError, match="metrics_address"):
        parse_address(text)


@contextmanager
def served(address: str, statuses: list[ComponentStatus]) -> Iterator[MetricsServer]:
    server = MetricsServer(address, collector(statuses), lambda: statuses)
    stop = threading.Event()
    thread = threading.Thread(target=server.run, args=(stop,))
    thread.start()
    deadline = time.monotonic() + 10
    while not server.facts()["address"]:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    try:
        yield server
    finally:
        stop.set()
        thread.join()


def fetched(server: MetricsServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{server.facts()['address']}{path}") as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_it_is_served_on_a_port_of_this_host() -> None:
    with served(":0", STATUSES) as server:
        code, text = fetched(server, "/metrics")
        assert code == 200
        assert scraped(text)["pgrecall_archive_pushed_total", ""] == 7
        assert fetched(server, "/healthz") == (503, "listener: waiting \n")
        assert fetched(server, "/etc/passwd")[0] == 404
    with served(":0", STATUSES[:1]) as server:
        assert fetched(server, "/healthz") == (200, "ok\n")


def test_it_is_served_at_a_socket_and_after_a_kill_again(tmp_path: Path) -> None:
    path = str(tmp_path / "metrics.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with served(path, STATUSES), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(path)
        client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert client.makefile("rb").read().startswith(b"HTTP/1.0 503")
    assert not Path(path).exists()


def test_an_address_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = MetricsServer(address, collector(), lambda: STATUSES)
        with pytest.raises(AgentPlaceError, match=address):
            server.run(threading.Event())


def test_a_client_that_says_nothing_keeps_no_other_waiting() -> None:
    with served(":0", STATUSES) as server:
        host, _, port = str(server.facts()["address"]).partition(":")
        with socket.create_connection((host, int(port))):
            assert fetched(server, "/metrics")[0] == 200
