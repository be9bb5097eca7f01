"""What dumps and loads decide, and what they tell PostgreSQL's tools."""

from __future__ import annotations

import msgspec
import pytest

from pgrecall.dump.arguments import NONE, Compression, DumpArguments, parse_compression, suffix
from pgrecall.dump.load_plan import LoadPlan, LoadWishes, plan_load, restore_arguments
from pgrecall.dump.plan import DumpPlan, DumpWishes, plan_dump
from pgrecall.errors import (
    PgrecallError,
    PostgresRightsError,
    ServerIsStandbyError,
    UsageError,
)
from pgrecall.further_errors import LoadError
from pgrecall.model.dumps import DumpContent, LoadChoice
from pgrecall.postgres.client_tools import ClientTools
from pgrecall.postgres.dump_session import DatabaseFacts, DumpFacts
from pgrecall.postgres.load_target import TargetContent, TargetFacts

TOOLS = ClientTools(directory="/bin", major=18, version="18.1", why="it is the server's own")
GIB = 1 << 30


def database(name: str, **changes: object) -> DatabaseFacts:
    facts = DatabaseFacts(
        name=name, oid=5, size_bytes=GIB, allows_connections=True, may_connect=True
    )
    return msgspec.structs.replace(facts, **changes)


def facts(*databases: DatabaseFacts, can_read_passwords: bool = True) -> DumpFacts:
    return DumpFacts(
        version_num=180001,
        is_in_recovery=False,
        system_identifier=1,
        role="dumper",
        bootstrap_role="postgres",
        can_read_passwords=can_read_passwords,
        free_connections=90,
        databases=(database("template0", allows_connections=False), *databases),
    )


WISHES = DumpWishes(
    server="main",
    repository="one",
    scope="databases",
    databases=(),
    dump_format="custom",
    content=DumpContent(),
    jobs=1,
    compression="zstd",
    level=3,
    is_encrypted=False,
)


def planned(some: DumpFacts, tools: ClientTools = TOOLS, **changes: object) -> DumpPlan:
    return plan_dump(msgspec.structs.replace(WISHES, **changes), some, tools)


def refused(some: DumpFacts, tools: ClientTools = TOOLS, **changes: object) -> PgrecallError:
    with pytest.raises(PgrecallError) as caught:
        planned(some, tools, **changes)
    return caught.value


def test_all_databases_but_template0_and_those_that_refuse() -> None:
    plan = planned(facts(database("a"), database("b", allows_connections=False), database("c")))
    assert [one.name for one in plan.databases] == ["a", "c"]
    assert plan.left_out == ("b: it refuses all connections (ALLOW_CONNECTIONS false)",)
    assert plan.total_bytes == 2 * GIB
    named = refused(facts(database("b", may_connect=False)), databases=("b",))
    assert isinstance(named, PostgresRightsError)
    assert "may not connect" in named.message


@pytest.mark.parametrize(
    ("encrypted", "passwords", "readable", "has_them", "codes"),
    [
        (True, None, True, True, []),
        (False, None, True, False, ["passwords-left-out"]),
        (False, True, True, True, []),
        (True, False, True, False, []),
        (True, None, False, False, ["passwords-left-out"]),
    ],
)
def test_passwords(
    *, encrypted: bool, passwords: bool | None, readable: bool, has_them: bool, codes: list[str]
) -> None:
    plan = planned(
        facts(database("a"), can_read_passwords=readable),
        is_encrypted=encrypted,
        passwords=passwords,
    )
    assert plan.with_passwords is has_them
    assert [one.code for one in plan.findings] == codes


def test_contradictions_of_a_dump() -> None:
    some = facts(database("a"))
    only_schema = DumpContent(schema_only=True)
    for changes in (
        {"content": DumpContent(schema_only=True, data_only=True)},
        {"scope": "globals", "databases": ("a",)},
        {"scope": "cluster", "dump_format": "custom"},
        {"scope": "cluster", "dump_format": "plain", "content": DumpContent(tables=("t",))},
        {"dump_format": "tar", "tool_compression": Compression("gzip", 1)},
        {"with_proofs": True, "content": only_schema},
        {"databases": ("nope",)},
    ):
        assert isinstance(refused(some, **changes), UsageError), changes
    old = msgspec.structs.replace(TOOLS, major=15, version="15.2")
    assert "gzip only" in refused(some, old, tool_compression=Compression("zstd")).message
    assert isinstance(
        refused(facts(database("a"), can_read_passwords=False), passwords=True),
        PostgresRightsError,
    )
    newline = facts(database("a\nb"))
    assert "breaks the line" in refused(newline, scope="cluster", dump_format="plain").message


def test_a_spool_that_may_be_too_small_is_told() -> None:
    some = facts(database("a"))
    plan = planned(some, dump_format="directory", free_bytes=GIB - 1, is_encrypted=True)
    assert [one.code for one in plan.findings] == ["spool-small"]
    assert plan.tool_compression == Compression("gzip", 1)
    plan = planned(some, dump_format="directory", free_bytes=GIB, is_encrypted=True)
    assert plan.findings == ()


def arguments(major: int, **changes: object) -> DumpArguments:
    made = DumpArguments(
        tool_major=major, dump_format="custom", content=DumpContent(), compression=NONE
    )
    return msgspec.structs.replace(made, **changes)


def test_what_pg_dump_is_told() -> None:
    assert arguments(18).of_database("0-1") == [
        "--no-password", "--format=c", "--snapshot=0-1", "--compress=0",
    ]  # fmt: skip
    content = DumpContent(tables=("a b", "c"), exclude_table_data=("*.log",), large_objects="with")
    told = arguments(18, content=content, compression=Compression("zstd", 5)).of_database("")
    assert told == [
        "--no-password", "--format=c", "--compress=zstd:5", "--table=a b", "--table=c",
        "--exclude-table-data=*.log", "--large-objects",
    ]  # fmt: skip
    # Versions before 16 know gzip alone, and another word for large objects.
    old = arguments(15, content=content, compression=Compression("gzip")).of_database("")
    assert "--compress=6" in old
    assert "--blobs" in old
    tar = arguments(18, dump_format="tar").of_database("")
    assert [word for word in tar if "compress" in word] == []
    directory = arguments(18, dump_format="directory", jobs=3, lock_timeout_seconds=1.5)
    told = directory.of_database("", directory="/x y")
    assert told[-3:] == ["--lock-wait-timeout=1500", "--file=/x y", "--jobs=3"]
    assert "--no-role-passwords" in arguments(18).of_globals(with_passwords=False)


def test_compressions_and_names() -> None:
    assert parse_compression("zstd:7") == Compression("zstd", 7)
    for bad in ("", "zip", "gzip:", "gzip:x"):
        with pytest.raises(UsageError):
            parse_compression(bad)
    assert suffix("plain", Compression("zstd")) == ".sql.zst"
    assert suffix("directory", NONE) == "/"


TARGET = TargetFacts(
    version_num=180001, is_in_recovery=False, role="loader", is_superuser=False,
    databases={"shop": GIB}, roles=frozenset({"loader"}),
)  # fmt: skip
LOAD = LoadWishes(
    server="main", source="d-1 database shop", source_format="custom", database="shop",
    choice=LoadChoice(), jobs=1, creates=False, swaps=False, new_name="shop_new",
    kept_name="shop_before", tool="pg_restore 18",
)  # fmt: skip


def load(
    present: TargetContent | None, target: TargetFacts = TARGET, **changes: object
) -> LoadPlan:
    return plan_load(msgspec.structs.replace(LOAD, **changes), target, present)


def test_where_a_dump_is_loaded() -> None:
    empty, full = TargetContent(0, 0), TargetContent(3, 0)
    assert load(empty).into == "shop"
    swap = load(full, swaps=True)
    assert (swap.into, swap.kept_name) == ("shop_new", "shop_before")
    assert load(None, database="other", creates=True).creates
    assert load(full, choice=LoadChoice(tables=("t",))).undo.startswith("none")
    for present, changes, kind in (
        (full, {}, LoadError),
        (None, {"database": "other"}, UsageError),
        (None, {"database": "other", "swaps": True}, UsageError),
        (full, {"creates": True}, UsageError),
        (full, {"swaps": True, "choice": LoadChoice(clean=True)}, UsageError),
        (empty, {"roles": ("gone",)}, LoadError),
        (empty, {"jobs": 2, "source_format": "tar"}, UsageError),
        (empty, {"jobs": 2, "choice": LoadChoice(single_transaction=True)}, UsageError),
        (empty, {"source_format": "plain", "choice": LoadChoice(no_owner=True)}, UsageError),
        (empty, {"choice": LoadChoice(sections=("middle",))}, UsageError),
        (empty, {"choice": LoadChoice(disable_triggers=True)}, PostgresRightsError),
    ):
        with pytest.raises(kind):
            load(present, **changes)  # type: ignore[arg-type]
    with pytest.raises(ServerIsStandbyError):
        load(empty, msgspec.structs.replace(TARGET, is_in_recovery=True))
    owners = LoadChoice(no_owner=True, no_privileges=True)
    assert load(empty, roles=("gone",), choice=owners).missing_roles == ("gone",)
    assert [one.code for one in load(empty, from_version=190000).findings] == ["older-server"]


def test_what_pg_restore_is_told() -> None:
    assert restore_arguments(LoadChoice(), jobs=1) == ["--no-password", "--exit-on-error"]
    choice = LoadChoice(clean=True, tables=("a",), single_transaction=True)
    assert restore_arguments(choice, jobs=1) == [
        "--no-password", "--clean", "--if-exists", "--single-transaction", "--table=a",
    ]  # fmt: skip
    assert restore_arguments(LoadChoice(goes_on=True), jobs=4) == ["--no-password", "--jobs=4"]
