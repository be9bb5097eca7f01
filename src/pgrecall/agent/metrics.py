"""What /metrics says: documented names, made from the facts of the components at each scrape.

docs/metrics.md is generated from the table below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pgrecall import __version__
from pgrecall.agent import observer, scheduler
from pgrecall.agent.component import Fact
from pgrecall.agent.supervisor import ComponentStatus
from pgrecall.errors import UsageError
from pgrecall.model.lsn import Lsn

_MOMENT = "moment"
_AGE = "age"
_LSN = "lsn"


class FactMetric(NamedTuple):
    """A metric that is one fact of one component.

    ``form``: how the fact is read: a number as it is, a ``moment`` as seconds
    since 1970, its ``age`` in seconds, an ``lsn`` as a number of bytes.
    """

    name: str
    component: str
    fact: str
    help: str
    form: str = ""


#: Metrics with no label but ``server``. Absent while the fact is not known.
FACT_METRICS = (
    FactMetric("archive_lag_bytes", "pusher", "lag_bytes", "WAL that waits to be durable."),
    FactMetric("archive_lag_segments", "pusher", "lag_segments", "Segments that wait."),
    FactMetric("archive_lag_seconds", "pusher", "lag_seconds", "Age of the oldest that waits."),
    FactMetric("archive_failing", "pusher", "failing", "1 while the last push has failed."),
    FactMetric("archive_pushed_total", "pusher", "pushed_total", "Files archived."),
    FactMetric(
        "archive_pushed_bytes_total",
        "pusher",
        "pushed_bytes_total",
        "Bytes archived, before compression.",
    ),
    FactMetric("archive_failures_total", "pusher", "failures_total", "Pushes that failed."),
    FactMetric(
        "archive_dropped_total",
        "pusher",
        "dropped_total",
        "Segments given up so that the disk did not fill: each is a gap.",
    ),
    FactMetric(
        "archive_owed_files", "pusher", "owed_files", "Files that best-effort repositories lack."
    ),
    FactMetric("wal_bytes_per_second", "pusher", "wal_bytes_per_second", "WAL written of late."),
    FactMetric("pg_wal_free_bytes", "pusher", "pg_wal_free_bytes", "Free space of pg_wal."),
    FactMetric(
        "pg_wal_full_in_seconds",
        "pusher",
        "pg_wal_full_in_seconds",
        "Time until pg_wal is full at the present rate; absent while it does not fill.",
    ),
    FactMetric("listener_pushes_total", "listener", "pushes", "wal push served."),
    FactMetric("listener_fetches_total", "listener", "fetches", "wal fetch served."),
    FactMetric("listener_failures_total", "listener", "failures", "Calls that failed."),
    FactMetric(
        "fetched_ahead_total",
        "fetcher",
        "fetched_prefetched_total",
        "Files that had been fetched ahead when they were asked for.",
    ),
    FactMetric(
        "receiver_lag_bytes",
        "receiver",
        "lag_bytes",
        "WAL of the server that the receiver has not flushed yet.",
    ),
    FactMetric(
        "receiver_flushed_lsn_bytes",
        "receiver",
        "flushed_to",
        "Up to where WAL is durable in the spool.",
        _LSN,
    ),
    FactMetric(
        "receiver_stored_lsn_bytes",
        "receiver",
        "stored_to",
        "Up to where received WAL is in the repositories.",
        _LSN,
    ),
    FactMetric(
        "receiver_segments_total", "receiver", "segments_stored", "Received segments stored."
    ),
    FactMetric("receiver_tails_total", "receiver", "tails_stored", "Unfinished segments stored."),
    FactMetric(
        "receiver_slot_retained_bytes",
        "receiver",
        "slot_retained_bytes",
        "WAL that the server keeps for the slot.",
    ),
    FactMetric(
        "receiver_slot_safe_bytes",
        "receiver",
        "slot_safe_wal_bytes",
        "WAL until the slot is lost; absent without max_slot_wal_keep_size.",
    ),
    FactMetric(
        "names_recorded_timestamp_seconds",
        "names",
        "last_at",
        "When it was recorded last what tables are called.",
        _MOMENT,
    ),
    FactMetric(
        "standbys_streaming",
        "replication",
        "streaming",
        "Standbys that stream; this and the next ones where [replication] standbys is set.",
    ),
    FactMetric(
        "standbys_missing", "replication", "missing", "Expected standbys that are not there."
    ),
    FactMetric(
        "standby_lag_bytes",
        "replication",
        "lag_bytes",
        "WAL that the standby that is farthest behind has not replayed.",
    ),
    FactMetric(
        "standby_lag_seconds", "replication", "lag_seconds", "The same in time, as measured last."
    ),
    FactMetric(
        "slot_retained_bytes",
        "replication",
        "retained_bytes",
        "WAL that is kept for the slot that keeps most.",
    ),
    FactMetric(
        "backup_last_timestamp_seconds",
        observer.NAME,
        "last_backup_at",
        "When the last good backup was complete; absent when there is none.",
        _MOMENT,
    ),
    FactMetric(
        "backup_last_age_seconds", observer.NAME, "last_backup_at", "Age of that backup.", _AGE
    ),
    FactMetric(
        "backup_last_raw_bytes", observer.NAME, "last_backup_raw_bytes", "Bytes of its files."
    ),
    FactMetric(
        "backup_last_stored_bytes",
        observer.NAME,
        "last_backup_stored_bytes",
        "What it takes in the repository.",
    ),
    FactMetric(
        "backup_last_duration_seconds",
        observer.NAME,
        "last_backup_duration_seconds",
        "How long it took.",
    ),
    FactMetric(
        "newest_commit_timestamp_seconds",
        observer.NAME,
        "newest_commit_at",
        "The last commit in the newest archived segments: the newest moment, if nothing is missing"
        " before it.",
        _MOMENT,
    ),
    FactMetric(
        "newest_commit_age_seconds",
        observer.NAME,
        "newest_commit_at",
        "Its age; it grows on an idle server too.",
        _AGE,
    ),
    FactMetric(
        "archived_lsn_bytes", observer.NAME, "newest_lsn", "End of the newest segment.", _LSN
    ),
    FactMetric(
        "repository_looked_at_timestamp_seconds",
        observer.NAME,
        "looked_at",
        "When the repository was looked at last: older means that it cannot be reached.",
        _MOMENT,
    ),
    FactMetric(
        "schedule_missed_total",
        scheduler.NAME,
        "missed_total",
        "Planned runs that were left out since the agent began.",
    ),
    FactMetric(
        "schedule_late_total",
        scheduler.NAME,
        "late_total",
        "Planned runs that began late.",
    ),
    FactMetric(
        "configuration_changed_timestamp_seconds",
        "configuration",
        "changed_at",
        "When the server's configuration was seen to have changed.",
        _MOMENT,
    ),
    FactMetric(
        "server_up", "configuration", "is_connected", "1 while the agent can ask the server."
    ),
)

#: name: (help, labels besides server)
LABELLED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "agent_info": ("Always 1.", ("version",)),
    "component_up": ("1 while the component is at work.", ("component",)),
    "component_restarts_total": ("How often it was run again after a failure.", ("component",)),
    "run_last_success": ("1 when the last run ended well, of the last 7 days.", ("command",)),
    "run_last_timestamp_seconds": ("When it ended.", ("command",)),
    "runs_failed": ("Runs of the last 7 days that failed or were interrupted.", ("command",)),
    "runs_missed": ("Planned runs of the last 7 days that were left out.", ("command",)),
}

_GOOD = frozenset({"ok", "warn"})


class AgentCollector(Collector):
    """Turns component statuses into metric families; ``statuses`` is asked at each scrape."""

    def __init__(
        self,
        server: str,
        statuses: Callable[[], Sequence[ComponentStatus]],
        now: Callable[[], datetime],
    ) -> None:
        self._server = server
        self._statuses = statuses
        self._now = now

    def describe(self) -> list[Metric]:
        """Nothing: registering asks no component."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families that have a value at this moment."""
        statuses = self._statuses()
        facts = {status.name: status.facts for status in statuses}
        yield from self._fact_families(facts)
        rows = {
            "agent_info": [(__version__, 1.0)],
            "component_up": [(one.name, float(one.state == "running")) for one in statuses],
            "component_restarts_total": [(one.name, float(one.restarts)) for one in statuses],
            **_run_rows(facts.get(observer.NAME, {})),
        }
        for name, samples in rows.items():
            help_text, labels = LABELLED[name]
            family = _family(name, help_text, ("server", *labels))
            for label, value in samples:
                family.add_metric([self._server, label], value)
            yield family

    def _fact_families(self, facts: Mapping[str, Mapping[str, Fact]]) -> Iterator[Metric]:
        for metric in FACT_METRICS:
            found = facts.get(metric.component, {}).get(metric.fact)
            value = _number(found, metric.form, self._now())
            if value is None:
                continue
            family = _family(metric.name, metric.help, ("server",))
            family.add_metric([self._server], value)
            yield family


def exposition(collector: AgentCollector) -> bytes:
    """The text of one scrape, in Prometheus's text format 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry)


def _family(
    name: str, help_text: str, labels: Sequence[str]
) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    return kind(f"pgrecall_{name}", help_text, labels=labels)


def _run_rows(facts: Mapping[str, Fact]) -> dict[str, list[tuple[str, float]]]:
    rows: dict[str, list[tuple[str, float]]] = {
        "run_last_success": [],
        "run_last_timestamp_seconds": [],
        "runs_failed": [],
        "runs_missed": [],
    }
    for name, value in facts.items():
        kind, _, rest = name.partition(":")
        command, _, what = rest.rpartition(":")
        if kind != "run" or value is None:
            continue
        match what:
            case "outcome":
                rows["run_last_success"].append((command, float(value in _GOOD)))
            case "ended_at":
                ended_at = datetime.fromisoformat(str(value))
                rows["run_last_timestamp_seconds"].append((command, ended_at.timestamp()))
            case "failed" | "missed":
                rows[f"runs_{what}"].append((command, float(value)))
    return rows


def _number(value: Fact, form: str, now: datetime) -> float | None:
    """A fact as a number; None when it is not known or does not read as what it should be."""
    if value is None:
        return None
    try:
        if form == _LSN:
            return float(Lsn.parse(str(value)))
        if form in {_MOMENT, _AGE}:
            at = datetime.fromisoformat(str(value)).astimezone(UTC)
            return at.timestamp() if form == _MOMENT else max(0.0, (now - at).total_seconds())
        return float(value)
    except (ValueError, UsageError):
        return None
