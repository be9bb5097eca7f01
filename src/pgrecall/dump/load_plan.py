"""Decide how a dump is loaded, and what that would meet; pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from pgrecall.errors import PostgresRightsError, ServerIsStandbyError, UsageError
from pgrecall.further_errors import LoadError
from pgrecall.model.dumps import DatabaseProperties, LoadChoice
from pgrecall.model.findings import Finding
from pgrecall.postgres.load_target import TargetContent, TargetFacts

Section = Literal["pre-data", "data", "post-data"]
_SECTIONS_KNOWN = ("pre-data", "data", "post-data")


class LoadWishes(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. ``roles`` that the dump needs are empty for a file of somebody's.

    ``new_name`` and ``kept_name``: of the databases that a swap makes. ``needs_server``: the
    version that the dump is from, 0: not known.
    """

    server: str
    source: str
    source_format: str
    database: str
    choice: LoadChoice
    jobs: int
    creates: bool
    swaps: bool
    new_name: str
    kept_name: str
    tool: str
    roles: tuple[str, ...] = ()
    properties: DatabaseProperties | None = None
    from_version: int = 0
    maintenance_bytes: int = 0


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``load`` does. ``into``: the database that is written to; ``action``: in words.

    ``missing_roles``: those that the dump needs and the server lacks. ``present``: what is in the
    database already. ``undo``: how the target is what it was before, after a failure or later.
    """

    server: str
    source: str
    source_format: str
    database: str
    into: str
    action: str
    jobs: int
    choice: LoadChoice
    creates: bool
    swaps: bool
    kept_name: str
    tool: str
    present: TargetContent | None = None
    missing_roles: tuple[str, ...] = ()
    undo: str = ""
    reasons: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def plan_load(wishes: LoadWishes, facts: TargetFacts, present: TargetContent | None) -> LoadPlan:
    """Decide; ``present`` is what the database holds, None when there is no such database.

    Raises UsageError, LoadError, ServerIsStandbyError, PostgresRightsError.
    """
    choice = wishes.choice
    _refuse_contradictions(wishes)
    if facts.is_in_recovery:
        raise ServerIsStandbyError(
            f"the server {wishes.server!r} is a standby: nothing can be loaded into it",
            hint="load into the primary",
        )
    _require_place(wishes, facts, present)
    findings = []
    role_map = choice.role_map
    needed = [role_map.get(role, role) for role in wishes.roles] + list(role_map.values())
    missing = tuple(role for role in dict.fromkeys(needed) if role not in facts.roles)
    if missing and not (choice.no_owner and choice.no_privileges):
        raise LoadError(
            f"the dump needs roles that the server {wishes.server!r} lacks: " + ", ".join(missing),
            hint=f"load the roles first: pgrecall load {wishes.source.partition(' ')[0]}"
            f" --globals; or let others take their place: --role-map {missing[0]}=ROLE; or leave"
            " owners and rights out: --no-owner --no-privileges",
        )
    if choice.disable_triggers and not facts.is_superuser:
        raise PostgresRightsError(
            f"--disable-triggers needs a superuser, and {facts.role} is none",
            hint="leave it out, or connect as a superuser",
        )
    if wishes.from_version // 10_000 > facts.version_num // 10_000:
        findings.append(
            Finding(
                severity="warn",
                code="older-server",
                message=f"the dump is from PostgreSQL {wishes.from_version // 10_000}, the server"
                f" runs {facts.version_num // 10_000}: what the older one does not know fails",
                hint="--report goes on after such statements and lists them",
            )
        )
    return LoadPlan(
        server=wishes.server,
        source=wishes.source,
        source_format=wishes.source_format,
        database=wishes.database,
        into=wishes.new_name if wishes.swaps else wishes.database,
        action=_action(wishes, present),
        jobs=wishes.jobs,
        choice=choice,
        creates=wishes.creates and present is None,
        swaps=wishes.swaps,
        kept_name=wishes.kept_name if wishes.swaps else "",
        tool=wishes.tool,
        present=present,
        missing_roles=missing,
        undo=_undo(wishes, present),
        findings=tuple(findings),
    )


def _refuse_contradictions(wishes: LoadWishes) -> None:
    choice = wishes.choice
    if choice.schema_only and choice.data_only:
        raise UsageError("--schema-only and --data-only leave nothing", hint="give one of them")
    if choice.role_map and wishes.jobs > 1:
        raise UsageError(
            "--role-map goes with one job: the dump is loaded as a script", hint="leave --jobs out"
        )
    if wishes.swaps and (choice.clean or choice.is_partial):
        raise UsageError(
            "--swap replaces a whole database: it goes with nothing that leaves a part out",
            hint="leave --clean and the options that choose a part out",
        )
    if wishes.jobs > 1 and wishes.source_format in ("plain", "tar"):
        raise UsageError(
            f"a dump of format {wishes.source_format} is loaded by one job",
            hint="leave --jobs out; dumps of format custom and directory can be loaded by several",
        )
    if choice.single_transaction and wishes.jobs > 1:
        raise UsageError(
            "--single-transaction and several jobs exclude each other",
            hint="for both speed and a way back use --swap",
        )
    if choice.single_transaction and choice.goes_on:
        raise UsageError(
            "--single-transaction and --report exclude each other: a transaction ends at its first"
            " error",
            hint="give one of them",
        )
    if wishes.source_format == "plain":
        wanted = [
            name
            for name, is_wanted in (
                ("--schema-only", choice.schema_only), ("--data-only", choice.data_only),
                ("--section", choice.sections), ("--table", choice.tables),
                ("--schema", choice.schemas), ("--exclude-schema", choice.exclude_schemas),
                ("--only-large-objects", choice.only_large_objects), ("--clean", choice.clean),
                ("--no-owner", choice.no_owner), ("--no-privileges", choice.no_privileges),
                ("--disable-triggers", choice.disable_triggers),
                ("--no-tablespaces", choice.no_tablespaces),
            )
            if is_wanted
        ]  # fmt: skip
        if wanted:
            raise UsageError(
                f"{wishes.source} is an SQL script: {wanted[0]} cannot choose from it",
                hint="dumps of format custom, directory and tar can be loaded in part",
            )
    unknown = [one for one in choice.sections if one not in _SECTIONS_KNOWN]
    if unknown:
        raise UsageError(
            f"there is no section {unknown[0]!r}", hint="they are " + ", ".join(_SECTIONS_KNOWN)
        )


def _require_place(wishes: LoadWishes, facts: TargetFacts, present: TargetContent | None) -> None:
    name, choice = wishes.database, wishes.choice
    if present is None:
        if wishes.swaps:
            raise UsageError(
                f"there is no database {name!r} to be swapped", hint="say --create instead"
            )
        if not wishes.creates:
            raise UsageError(
                f"the server {wishes.server!r} has no database {name!r}",
                hint="say --create to make it; there are " + ", ".join(sorted(facts.databases)),
            )
        return
    if wishes.creates:
        raise UsageError(
            f"the database {name!r} is there already",
            hint="load into it without --create, replace it with --swap, or choose another name",
        )
    if wishes.swaps:
        taken = [one for one in (wishes.new_name, wishes.kept_name) if one in facts.databases]
        if taken:
            raise LoadError(f"there is a database {taken[0]!r} already", hint="run it again")
        return
    if present.tables and not (choice.clean or choice.is_partial):
        raise LoadError(
            f"the database {name!r} holds {present.tables} tables already",
            hint="--swap replaces the database and can be undone, --clean drops what the dump"
            " brings anew, --data-only and --table load a part; or load into another database",
        )


def _action(wishes: LoadWishes, present: TargetContent | None) -> str:
    if wishes.swaps:
        return (
            f"load into the new database {wishes.new_name}, then let it take the place of"
            f" {wishes.database}, which is kept as {wishes.kept_name}"
        )
    if present is None:
        return f"create the database {wishes.database}, and load into it"
    if wishes.choice.clean:
        return f"drop in {wishes.database} what the dump brings, and load it"
    return f"load into the database {wishes.database}"


def _undo(wishes: LoadWishes, present: TargetContent | None) -> str:
    if wishes.swaps:
        return (
            "a failure drops the new database and changes nothing; later: pgrecall undo RUN, as"
            f" long as {wishes.kept_name} is there"
        )
    if present is None:
        return "a failure drops the new database"
    if wishes.choice.single_transaction:
        return "a failure changes nothing: all is one transaction"
    return "none: after a failure what was loaded until then stays, and is reported"


def restore_arguments(choice: LoadChoice, *, jobs: int, as_script: bool = False) -> list[str]:
    """Arguments of pg_restore, without its database and its file.

    ``as_script``: it writes SQL; how that is carried out is up to whoever does.
    """
    flags: Sequence[tuple[bool, str]] = (
        (choice.schema_only, "--schema-only"),
        (choice.data_only, "--data-only"),
        (choice.clean, "--clean"),
        (choice.clean, "--if-exists"),
        (choice.no_owner, "--no-owner"),
        (choice.no_privileges, "--no-privileges"),
        (choice.no_tablespaces, "--no-tablespaces"),
        (choice.disable_triggers, "--disable-triggers"),
        (choice.single_transaction and not as_script, "--single-transaction"),
        (
            not choice.goes_on and not choice.single_transaction and not as_script,
            "--exit-on-error",
        ),
    )
    arguments = ["--no-password", *(flag for is_set, flag in flags if is_set)]
    for option, names in (
        ("section", choice.sections),
        ("table", choice.tables),
        ("schema", choice.schemas),
        ("exclude-schema", choice.exclude_schemas),
    ):
        arguments += [f"--{option}={name}" for name in names]
    if jobs > 1:
        arguments.append(f"--jobs={jobs}")
    return arguments
