"""What differs between two captures: found, put into kinds, and without secrets."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pgrecall.model.capture_diff import UNTOLD, Difference, difference
from pgrecall.model.captures import (
    CapturedFile,
    CapturedRole,
    CapturedSetting,
    CapturedSlot,
    CapturedSubscription,
    CaptureFacts,
)
from pgrecall.model.findings import Finding
from pgrecall.model.withholding import WITHHELD

SECRET = "Rumpelstilzchen-4711"
CONNECTION = f"host=a password={SECRET}"
LINE = f"primary_conninfo = '{CONNECTION}'"
OTHER = CONNECTION + "2"
BASE = CaptureFacts(
    version_num=180000,
    version="PostgreSQL 18.0",
    data_checksums=True,
    files=(
        CapturedFile(path="/etc/pg/postgresql.conf", content="work_mem = 4MB\n# note\n"),
        CapturedFile(
            path="/etc/pg/pg_hba.conf", content="# all\nlocal all all peer\nhost a b c d\n"
        ),
    ),
    settings=(CapturedSetting(name="work_mem", value="4096", source="configuration file"),),
    roles=(CapturedRole(name="app", attributes=("LOGIN",), password="SCRAM-SHA-256$one"),),
    slots=(CapturedSlot(name="standby_1", kind="physical", sql="SELECT 1"),),
)


def changed(**fields: Any) -> tuple[Difference, ...]:
    found = difference(BASE, msgspec.structs.replace(BASE, **fields))
    assert found.unknown == ()
    return found.differences


def words(differences: tuple[Difference, ...]) -> list[tuple[str, ...]]:
    return [
        (one.kind, one.change, one.name.rpartition("/")[2], one.what, one.before, one.after)
        for one in differences
    ]


def test_nothing_differs_from_itself() -> None:
    assert difference(BASE, BASE).differences == ()


def test_values_are_told_and_kinds_kept_apart() -> None:
    found = changed(
        version="PostgreSQL 18.1",
        settings=(CapturedSetting(name="work_mem", value="8192", source="configuration file"),),
        slots=(CapturedSlot(name="standby_2", kind="physical", sql="SELECT 2"),),
    )
    assert words(found) == [
        ("server", "changed", "version", "", "PostgreSQL 18.0", "PostgreSQL 18.1"),
        ("settings", "changed", "work_mem", "", "4096", "8192"),
        ("slots", "removed", "standby_1", "", "kind physical", ""),
        ("slots", "added", "standby_2", "", "", "kind physical"),
    ]


def test_rules_are_compared_line_by_line_and_blanks_do_not_count() -> None:
    hba = CapturedFile(
        path="/etc/pg/pg_hba.conf", content="local   all all\tpeer\nhost a b c e\n\n# other\n"
    )
    assert words(changed(files=(BASE.files[0], hba))) == [
        ("hba", "removed", "pg_hba.conf", "", "host a b c d", ""),
        ("hba", "added", "pg_hba.conf", "", "", "host a b c e"),
    ]
    same = msgspec.structs.replace(BASE.files[1], content="# none\n" + BASE.files[1].content)
    (only,) = changed(files=(BASE.files[0], same))
    assert (only.change, only.what) == ("changed", "comments or blanks")


def test_the_order_of_rules_counts() -> None:
    hba = CapturedFile(path="/etc/pg/pg_hba.conf", content="host a b c d\nlocal all all peer\n")
    found = changed(files=(BASE.files[0], hba))
    assert {(one.change, one.before or one.after) for one in found} in (
        {("removed", "host a b c d"), ("added", "host a b c d")},
        {("removed", "local all all peer"), ("added", "local all all peer")},
    )


def test_a_file_that_a_setting_names_is_the_one_of_the_rules() -> None:
    settings = (CapturedSetting(name="hba_file", value="/x/rules", source="configuration file"),)
    before = msgspec.structs.replace(
        BASE, settings=settings, files=(CapturedFile(path="/x/rules", content="a\n"),)
    )
    after = msgspec.structs.replace(before, files=(CapturedFile(path="/x/rules", content="b\n"),))
    assert {one.kind for one in difference(before, after).differences} == {"hba"}


def test_secrets_are_not_told() -> None:
    before = msgspec.structs.replace(
        BASE,
        settings=(CapturedSetting(name="primary_conninfo", value=CONNECTION, source="x"),),
        subscriptions=(
            CapturedSubscription(
                database="d", name="s", owner="o", is_enabled=True, slot="s",
                connection=CONNECTION,
            ),
        ),
        files=(CapturedFile(path="/etc/pg/a.conf", content=LINE),),
    )  # fmt: skip
    after = msgspec.structs.replace(
        before,
        settings=(CapturedSetting(name="primary_conninfo", value=OTHER, source="x"),),
        subscriptions=(msgspec.structs.replace(before.subscriptions[0], connection=OTHER),),
        roles=(msgspec.structs.replace(BASE.roles[0], password="SCRAM-SHA-256$two"),),
        files=(CapturedFile(path="/etc/pg/a.conf", content=LINE + "2"),),
    )
    found = difference(before, after).differences
    assert {one.kind for one in found} == {"settings", "subscriptions", "roles", "files"}
    assert {(one.before, one.after) for one in found} == {(UNTOLD, UNTOLD)}
    whole = difference(before, BASE).differences + difference(BASE, after).differences
    assert SECRET not in str(whole)
    assert "SCRAM-SHA" not in str(whole)


@pytest.mark.parametrize("is_first", [True, False])
def test_what_was_withheld_on_one_side_is_unknown_and_no_difference(is_first: bool) -> None:
    withheld = msgspec.structs.replace(
        BASE,
        settings=(
            CapturedSetting(
                name="work_mem", value=WITHHELD, source="configuration file", is_withheld=True
            ),
        ),
        roles=(msgspec.structs.replace(BASE.roles[0], password=""),),
        files=(),
        findings=(
            Finding("warn", "capture-withheld", "password hashes are left out", "roles"),
            Finding("warn", "capture-rights", "files are left out", "files"),
        ),
    )
    pair = (withheld, BASE) if is_first else (BASE, withheld)
    found = difference(*pair)
    assert found.differences == ()
    assert {one.partition(":")[0] for one in found.unknown} == {"files", "roles"}
