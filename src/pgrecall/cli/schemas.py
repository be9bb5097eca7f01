"""The JSON that commands print, by schema: one table, from which docs/json is generated.

A schema is named ``COMMAND/N``. Fields may be added under the same number; when
one changes its meaning, its type or goes away, the number rises.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec

from pgrecall.app.agent import AgentResult
from pgrecall.app.backing_up import BackupResult
from pgrecall.app.branching import AllowBranchResult
from pgrecall.app.capture_diffing import CaptureDiffResult
from pgrecall.app.capture_restoring import CaptureRestoreResult
from pgrecall.app.capture_undoing import CaptureUndoResult
from pgrecall.app.capturing import CaptureDetails, CaptureList, CaptureResult
from pgrecall.app.catalog import BackupDetails, BackupList
from pgrecall.app.checking import CheckResult
from pgrecall.app.client_install import ClientResult
from pgrecall.app.copying import CopyResult
from pgrecall.app.demo_report import DemoReport
from pgrecall.app.diagnosing import DoctorResult
from pgrecall.app.drilling import DrillResult, DumpDrillResult
from pgrecall.app.drills import DrillDetails, DrillList
from pgrecall.app.dump_catalog import DumpContents, DumpDetails, DumpList
from pgrecall.app.dumping import DumpResult
from pgrecall.app.enabling import EnableResult
from pgrecall.app.enabling_undo import UndoResult
from pgrecall.app.estimating import EstimateResult
from pgrecall.app.expiring import ExpireResult, UndoExpiryResult
from pgrecall.app.exporting import ExportItemResult
from pgrecall.app.fetching_ahead import AheadResult
from pgrecall.app.finding import FindResult
from pgrecall.app.guide_targets import GuideResult
from pgrecall.app.holding import HoldList, HoldResult
from pgrecall.app.importing import ImportResult
from pgrecall.app.indexing import WalIndexResult
from pgrecall.app.initialize import InitResult
from pgrecall.app.key_changing import ExportResult, RewrapResult, RotateResult
from pgrecall.app.key_checking import KeyCheckResult
from pgrecall.app.loading import LoadResult
from pgrecall.app.loading_globals import LoadGlobalsResult
from pgrecall.app.loading_undo import LoadUndoResult
from pgrecall.app.purging import PurgeResult
from pgrecall.app.receiving import ReceiveResult, SlotsResult
from pgrecall.app.recoverable_result import RecoverableResult
from pgrecall.app.recovering import RecoveryResult, RecoveryStatus
from pgrecall.app.repairing import RepairResult
from pgrecall.app.replication_status import ReplicationStatus
from pgrecall.app.reporting import AuditReport
from pgrecall.app.repositories import RepositoriesResult
from pgrecall.app.rescuing import RescueResult
from pgrecall.app.restoring import RestoreResult
from pgrecall.app.runs import RunDetails, RunList, RunsVerifyResult
from pgrecall.app.set_creating import SetResult
from pgrecall.app.set_results import SetRestoreResult
from pgrecall.app.sets import SetDetails, SetList
from pgrecall.app.standbys import StandbyBuildResult
from pgrecall.app.status import StatusResult
from pgrecall.app.switching import RestorePointResult, SwitchResult
from pgrecall.app.undoing import RestoreUndoResult
from pgrecall.app.upgrading import UpgradeResult
from pgrecall.app.verifying import VerifyResult
from pgrecall.app.wal_status import WalStatus
from pgrecall.cli.commands.completion import CompletionResult
from pgrecall.cli.commands.version import VersionResult

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE = "#/$defs/"


class WalPushResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``wal push`` prints; ``warnings``: what best-effort repositories missed.

    ``dropped``: stored nowhere (agent.drop_wal_above_bytes), with a warning that says so.
    """

    name: str
    outcome: Literal["created", "already-stored", "dropped"]
    stored_bytes: int
    warnings: list[str]


class WalFetchResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``wal fetch`` prints; ``absent``: proven so in every repository (status 64)."""

    name: str
    outcome: Literal["delivered", "absent"]
    warnings: list[str]


class ErrorContent(msgspec.Struct, frozen=True, kw_only=True):
    """One error; ``code`` and ``exit_status`` are stable, docs/errors.md lists them."""

    code: str
    message: str
    hint: str
    exit_status: int


class ErrorResult(msgspec.Struct, frozen=True, kw_only=True):
    """What every command prints instead of its result when it fails."""

    error: ErrorContent


# Schema -> (how the command is typed, the type of what it prints).
SCHEMAS: dict[str, tuple[str, type[msgspec.Struct]]] = {
    "init/1": ("init", InitResult),
    "check/1": ("check", CheckResult),
    "verify/1": ("verify", VerifyResult),
    "copy/1": ("copy", CopyResult),
    "repair/1": ("repair", RepairResult),
    "backup/1": ("backup", BackupResult),
    "backups-list/1": ("backups list", BackupList),
    "backups-show/1": ("backups show", BackupDetails),
    "capture/1": ("capture", CaptureResult),
    "captures-list/1": ("captures list", CaptureList),
    "captures-show/1": ("captures show", CaptureDetails),
    "captures-diff/1": ("captures diff", CaptureDiffResult),
    "captures-restore/1": ("captures restore", CaptureRestoreResult),
    "set-create/1": ("set create", SetResult),
    "set-restore/1": ("set restore", SetRestoreResult),
    "sets-list/1": ("sets list", SetList),
    "sets-show/1": ("sets show", SetDetails),
    "dump/1": ("dump", DumpResult),
    "load/1": ("load", LoadResult),
    "load-globals/1": ("load --globals", LoadGlobalsResult),
    "drill/1": ("drill", DrillResult),
    "drill-dump/1": ("drill", DumpDrillResult),
    "drills-list/1": ("drills list", DrillList),
    "drills-show/1": ("drills show", DrillDetails),
    "dumps-list/1": ("dumps list", DumpList),
    "dumps-show/1": ("dumps show", DumpDetails),
    "dumps-contents/1": ("dumps show --contents", DumpContents),
    "repositories/1": ("repositories", RepositoriesResult),
    "report/1": ("report", AuditReport),
    "runs-list/1": ("runs list", RunList),
    "runs-show/1": ("runs show", RunDetails),
    "runs-verify/1": ("runs verify", RunsVerifyResult),
    "wal-push/1": ("wal push", WalPushResult),
    "wal-fetch/1": ("wal fetch", WalFetchResult),
    "wal-fetch-ahead/1": ("wal fetch-ahead", AheadResult),
    "wal-receive/1": ("wal receive", ReceiveResult),
    "wal-slots/1": ("wal slots", SlotsResult),
    "wal-client/1": ("wal client", ClientResult),
    "wal-enable/1": ("wal enable", EnableResult),
    "wal-enable-undo/1": ("wal enable --undo", UndoResult),
    "wal-allow-branch/1": ("wal allow-branch", AllowBranchResult),
    "expire/1": ("expire", ExpireResult),
    "expire-undo/1": ("expire --undo", UndoExpiryResult),
    "purge/1": ("purge", PurgeResult),
    "estimate/1": ("estimate", EstimateResult),
    "hold/1": ("hold add", HoldResult),
    "holds/1": ("holds", HoldList),
    "export/1": ("export", ExportItemResult),
    "import/1": ("import", ImportResult),
    "find/1": ("find", FindResult),
    "wal-index/1": ("wal index", WalIndexResult),
    "restore/1": ("restore", RestoreResult),
    "standby-build/1": ("standby build", StandbyBuildResult),
    "rescue/1": ("rescue", RescueResult),
    "undo/1": ("undo", RestoreUndoResult),
    "undo-load/1": ("undo", LoadUndoResult),
    "undo-capture/1": ("undo", CaptureUndoResult),
    "recoverable/1": ("recoverable", RecoverableResult),
    "replication-status/1": ("replication status", ReplicationStatus),
    "wal-status/1": ("wal status", WalStatus),
    "wal-switch/1": ("wal switch", SwitchResult),
    "restore-point/1": ("restore-point", RestorePointResult),
    "recovery-status/1": ("recovery status", RecoveryStatus),
    "recovery-resume/1": ("recovery resume", RecoveryResult),
    "recovery-promote/1": ("recovery promote", RecoveryResult),
    "key-check/1": ("key check", KeyCheckResult),
    "key-rotate/1": ("key rotate", RotateResult),
    "key-rewrap/1": ("key rewrap", RewrapResult),
    "key-export/1": ("key export", ExportResult),
    "server-upgrade/1": ("server upgrade", UpgradeResult),
    "agent/1": ("agent", AgentResult),
    "status/1": ("status", StatusResult),
    "guide/1": ("guide", GuideResult),
    "doctor/1": ("doctor", DoctorResult),
    "demo/1": ("demo", DemoReport),
    "version/1": ("version", VersionResult),
    "completion/1": ("completion", CompletionResult),
    "error/1": ("", ErrorResult),
}

_PAGE = """\
# JSON output

Generated by `make docs` from `src/pgrecall/cli/schemas.py`; do not edit.

With `--json` a command writes one JSON object to standard output and nothing else; progress and
the log go to standard error. Its member `schema` is `pgrecall/COMMAND/N`. The files here are JSON
Schemas (draft 2020-12) of these objects.

- Under the same number members may be added: ignore those that you do not know. When one is
  removed, or changes its type or meaning, the number rises.
- A command that fails writes an object of schema `pgrecall/error/1` instead of its own, and ends
  with the status that stands in it. `check`, `backup` and `demo` can also end with a status other
  than 0 after their own object: its findings say why.
- Names say units: `*_bytes`, `*_seconds`; `*_at` is a moment (RFC 3339, UTC). LSNs and system
  identifiers are text. Findings have a `severity` (`ok`, `warn`, `fail`) and a stable `code`.
- After `--dry-run` there is a `plan`, and what would be the result is missing or empty.

| command | schema | file |
|---|---|---|
"""


def schema_files() -> dict[str, str]:
    """The generated files: name below docs, and text."""
    files = {_file(schema): _text(json_schema(schema)) for schema in SCHEMAS}
    rows = [
        f"| {f'`{command}`' if command else 'any, when it fails'} | `pgrecall/{schema}` "
        f"| [{_file(schema)}]({_file(schema)}) |\n"
        for schema, (command, _) in SCHEMAS.items()
    ]
    files["README.md"] = _PAGE + "".join(rows)
    return {f"json/{name}": text for name, text in files.items()}


def json_schema(schema: str) -> dict[str, Any]:
    """The JSON Schema of ``COMMAND/N``, with the member ``schema`` that every output has."""
    command, kind = SCHEMAS[schema]
    (reference,), definitions = msgspec.json.schema_components(
        [kind], ref_template="#/$defs/{name}"
    )
    root = definitions.pop(reference["$ref"].removeprefix(_REFERENCE))
    name = f"pgrecall/{schema}"
    whole: dict[str, Any] = {
        "$schema": _DIALECT,
        "$id": name,
        "title": f"pgrecall {command} --json" if command else "pgrecall: an error",
        **{key: value for key, value in root.items() if key not in {"title", "properties"}},
        "properties": {"schema": {"const": name}, **root["properties"]},
        "required": ["schema", *root.get("required", [])],
    }
    if definitions:
        whole["$defs"] = dict(sorted(definitions.items()))
    _tidy(whole)
    return whole


def _tidy(part: Any) -> None:
    """Descriptions are docstrings: without their markup and line breaks."""
    if isinstance(part, dict):
        if isinstance(part.get("description"), str):
            part["description"] = " ".join(part["description"].replace("``", "").split())
        for value in part.values():
            _tidy(value)
    elif isinstance(part, list):
        for value in part:
            _tidy(value)


def _file(schema: str) -> str:
    return schema.replace("/", ".") + ".schema.json"


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
