"""The 3-2-1 rule, held to facts."""

from __future__ import annotations

from pathlib import Path

from pgrecall.app.repositories import RepositoryFacts, rule_321
from pgrecall.system.filesystems import filesystem_of


def holder(
    name: str, medium: str, *, offsite: bool = False, newest: bool = True
) -> RepositoryFacts:
    return RepositoryFacts(
        name=name, role="required", place=name, medium=medium, is_offsite=offsite,
        holds_newest=newest,
    )  # fmt: skip


def test_it_is_met_by_two_repositories_of_which_one_is_elsewhere() -> None:
    rule = rule_321("ext4 on device 8:1", [
        holder("near", "ext4 on device 8:1"), holder("far", "s3 at x", offsite=True),
    ])  # fmt: skip
    assert (rule.is_met, rule.missing) == (True, ())
    assert rule.said == "3 of 3 copies, 2 of 2 media, 1 of 1 off-site"


def test_what_is_missing_is_named() -> None:
    rule = rule_321("ext4 on device 8:1", [holder("near", "ext4 on device 8:1")])
    assert not rule.is_met
    assert [one.split(":")[0] for one in rule.missing] == [
        "1 more copy of the newest backup",
        "another kind of medium",
        "a copy at another place (is_offsite = true says that it is)",
    ]
    assert rule_321("", []).missing[0].startswith("2 more copies")


def test_who_lacks_the_newest_backup_does_not_count() -> None:
    rule = rule_321("a", [holder("far", "b", offsite=True, newest=False)])
    assert (rule.copies, rule.offsite, rule.media) == (1, (), ("a",))


def test_a_file_system_is_told_by_its_type_and_device(tmp_path: Path) -> None:
    kind, device = filesystem_of(str(tmp_path))
    assert kind
    assert device == filesystem_of(str(tmp_path.parent))[1]
    assert filesystem_of("/proc")[0] == "proc"
