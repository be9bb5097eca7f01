"""Tables of medians and ratios, for the terminal and for docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.jobs import Job
from benchmarks.measure import Measurement
from benchmarks.peers import PGBACKREST, PGRECALL, Tool

_MB = 1e6


@dataclass(frozen=True)
class Facts:
    """What the numbers depend on, besides the tools."""

    command: str
    place: Path
    versions: Sequence[str]
    notes: Sequence[str]


def median(runs: Iterable[Measurement], value: Callable[[Measurement], float]) -> float:
    """The median of one figure of the runs."""
    return statistics.median(value(run) for run in runs)


def document(jobs: Sequence[Job], facts: Facts, sections: Sequence[str]) -> str:
    """The whole of docs/benchmarks.md; ``sections`` are appended as they are."""
    parts = ["\n\n".join(["## Results in short", _short(jobs)])]
    for job in jobs:
        title = f"## {job.title[0].upper()}{job.title[1:]}: {job.subject}"
        parts.append(f"{title}\n\n{table(job)}")
    return page("Benchmarks", "make bench", facts, [*parts, *sections])


def page(title: str, target: str, facts: Facts, sections: Sequence[str]) -> str:
    """A document that ``target`` writes."""
    generated = f"<!-- Written by `{target}`; do not edit. -->"
    return "\n\n".join([f"# {title}", generated, _head(facts), *sections]).rstrip() + "\n"


def summary(jobs: Sequence[Job]) -> str:
    """For the terminal: the ratios of every job."""
    return _short(jobs)


def best_of(job: Job, family: str) -> str | None:
    """The fastest configuration of a tool, by median wall time."""
    names = [
        name for name in job.runs if name.startswith(family) and not name.endswith("encrypted")
    ]
    return min(names, key=lambda name: _wall(job, name)) if names else None


def _short(jobs: Sequence[Job]) -> str:
    lines = [
        "| job | pgrecall | pgBackRest's best | times as fast | against each | stored, relative |",
        "|---|---|---|---|---|---|",
    ]
    for job in jobs:
        own = next((name for name in job.runs if name.startswith(PGRECALL)), None)
        if own is None:
            continue
        best = best_of(job, PGBACKREST)
        others = [name for name in job.runs if name != own]
        against = ", ".join(
            f"{_brief(name)} {_wall(job, name) / _wall(job, own):.2f}" for name in others
        )
        stored = ", ".join(
            f"{_brief(name)} {_stored(job, own) / _stored(job, name):.2f}"
            for name in others
            if _stored(job, name)
        )
        beside = f"{_wall(job, best):.2f} s ({best})" if best else "not measured"
        ratio = f"**{_wall(job, best) / _wall(job, own):.2f}**" if best else ""
        lines.append(
            f"| {job.title}: {job.subject} | {_wall(job, own):.2f} s | {beside} | {ratio}"
            f" | {against} | {stored} |"
        )
    return "\n".join(lines)


def table(job: Job) -> str:
    """Every tool's medians; of archiving, a backlog's rate and the calls as well."""
    rounds = max(len(runs) for runs in job.runs.values())
    has_calls = job.title == "wal push"
    has_server = any(run.server_cpu_seconds for runs in job.runs.values() for run in runs)
    headings = ["tool", "wall s (all rounds)", "CPU s"]
    headings += ["server CPU s"] * (has_server or not has_calls)
    headings += ["sampler CPU s", "peak MB", "largest MB", "stored MB"]
    headings += ["per s", "p50, p95 ms"] * has_calls
    lines = [f"Medians of {rounds} round{'s' if rounds > 1 else ''}, interleaved.", ""]
    lines += [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    for name, runs in job.runs.items():
        walls = " ".join(f"{run.wall_seconds:.2f}" for run in runs)
        cells = [
            name,
            f"**{_wall(job, name):.2f}** ({walls})",
            f"{median(runs, lambda run: run.cpu_seconds):.2f}",
        ]
        if has_server or not has_calls:
            cells.append(f"{median(runs, lambda run: run.server_cpu_seconds):.2f}")
        cells.append(f"{median(runs, lambda run: run.sampler_cpu_seconds):.2f}")
        cells.append(f"{median(runs, lambda run: run.peak_bytes) / _MB:.0f}")
        cells.append(_largest(runs))
        stored = _stored(job, name) / _MB
        cells.append(f"{stored:.1f}" if stored else "")
        if has_calls:
            calls = sorted(call for run in runs for call in run.calls)
            cells.append(f"{len(runs[0].calls) / _wall(job, name):.1f}")
            cells.append(percentiles(calls, digits=0))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def encryption_section(jobs: Sequence[Job], plain: Tool, encrypted: Tool) -> str:
    """What encryption costs: the medians of one tool with and without, and their ratio."""
    lines = [
        "## Encryption",
        "",
        "| job | plain | encrypted | ratio | CPU ratio |",
        "|---|---|---|---|---|",
    ]
    for job in jobs:
        walls = [_wall(job, tool.name) for tool in (plain, encrypted)]
        cpus = [
            median(job.runs[tool.name], lambda run: run.cpu_seconds) for tool in (plain, encrypted)
        ]
        lines.append(
            f"| {job.title} | {walls[0]:.2f} s | {walls[1]:.2f} s | {walls[1] / walls[0]:.3f} "
            f"| {cpus[1] / cpus[0]:.3f} |"
        )
    return "\n".join([*lines, ""])


def percentiles(seconds: Iterable[float], *, digits: int) -> str:
    """p50 and p95 in milliseconds."""
    ordered = sorted(seconds)
    return f"{_at(ordered, 0.5) * 1000:.{digits}f}, {_at(ordered, 0.95) * 1000:.{digits}f}"


def _largest(runs: Sequence[Measurement]) -> str:
    """The largest single process of all rounds in MB; Linux does not tell what is below a floor."""
    largest = max(run.largest_bytes for run in runs)
    floor = max(run.floor_bytes for run in runs)
    return f"{largest / _MB:.0f}" if largest > floor else f"under {floor / _MB:.0f}"


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _wall(job: Job, name: str) -> float:
    return median(job.runs[name], lambda run: run.wall_seconds)


def _stored(job: Job, name: str) -> float:
    return median(job.runs[name], lambda run: run.stored_bytes)


def _brief(name: str) -> str:
    return name.removeprefix(f"{PGBACKREST} ")


def _head(facts: Facts) -> str:
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    lines = [
        f"Measured on {day} with `{facts.command}` on {machine(facts.place)}.",
        "",
        *(f"- {version}" for version in facts.versions),
        "",
        "How it is measured:",
        "",
        *(f"- {note}" for note in facts.notes),
    ]
    return "\n".join(lines)


def machine(place: Path) -> str:
    """Processor, cores, memory, kernel, file system, in one line."""
    model = "an unnamed processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return (
        f"{len(os.sched_getaffinity(0))} cores of {model}, {memory:.0f} GiB of memory,"
        f" Linux {platform.release()}, {_filesystem(place)}, Python {platform.python_version()}"
    )


def _filesystem(place: Path) -> str:
    """The type of the file system that holds ``place``: the longest mount point that fits."""
    best, kind = "", "an unknown file system"
    resolved = str(place.resolve())
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, name, *_ = line.split()
        prefix = point if point.endswith("/") else point + "/"
        if (resolved + "/").startswith(prefix) and len(point) >= len(best):
            best, kind = point, name
    return kind
