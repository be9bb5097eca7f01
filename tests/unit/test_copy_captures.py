"""Captures are copied, but never from an encrypted repository to a plain one."""

from __future__ import annotations

import pytest

from pgrecall.repository.name_layout import captures_prefix
from pgrecall.store.base import SUITE_AES, SUITE_NONE
from pgrecall.store.memory import MemoryStore
from pgrecall.verify import copy_records


@pytest.mark.parametrize(
    ("source_suite", "target_suite", "is_copied"),
    [
        (SUITE_NONE, SUITE_NONE, True),
        (SUITE_NONE, SUITE_AES, True),
        (SUITE_AES, SUITE_AES, True),
        (SUITE_AES, SUITE_NONE, False),
    ],
)
def test_captures_go_where_secrets_may_go(
    source_suite: str, target_suite: str, *, is_copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = MemoryStore("source"), MemoryStore("target")
    monkeypatch.setattr(source, "suite", source_suite)
    monkeypatch.setattr(target, "suite", target_suite)
    key = captures_prefix("main") + "m-20261122T201637Z-7k3q.json"
    source.put(key, [b"{}"])
    found = [info.key for info in copy_records._plain_records(source, target, "main")]
    assert found == ([key] if is_copied else [])
