"""Page checksums on clusters of real servers, with pg_checksums as the second opinion."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from pgrecall.codec import pages, pages_numpy
from tests.support.postgresql import Installation, ServerFactory

_RELATION = re.compile(r"\d+(_(fsm|vm|init))?(\.(?P<part>\d+))?")


def relation_files(pgdata: Path) -> list[Path]:
    files = [*pgdata.glob("base/*/*"), *pgdata.glob("global/*")]
    return [file for file in files if _RELATION.fullmatch(file.name) and file.stat().st_size]


def test_every_page_is_good_until_a_byte_changes(
    installation: Installation, pg_factory: ServerFactory
) -> None:
    server = pg_factory(installation, checksums=True)
    server.pgbench("-i", "-s", "2", "-q")
    server.pgbench("-t", "50")
    path = server.pgdata / server.value("SELECT pg_relation_filepath('pgbench_accounts')")
    server.sql("VACUUM")
    server.stop()
    checked = 0
    for file in relation_files(server.pgdata):
        content = file.read_bytes()
        assert pages.check_pages(content, 0) == [], file
        assert pages_numpy.check_pages(content, 0, 8192) == [], file
        checked += len(content) // 8192
    assert checked > 3000
    assert pages.check_pages(path.read_bytes(), 1) != []

    content = bytearray(path.read_bytes())
    content[8192 * 17 + 5000] ^= 0x01
    path.write_bytes(content)
    assert pages.check_pages(content, 0) == [(17, pages.BAD_CHECKSUM)]
    if not installation.has_own("pg_checksums"):
        pytest.skip(f"PostgreSQL {installation.major} is installed without its pg_checksums")
    judged = subprocess.run(
        [installation.program("pg_checksums"), "--check", "-D", server.pgdata],
        capture_output=True,
        text=True,
        check=False,
    )
    assert judged.returncode != 0
    assert re.search(rf'{path.name}", block 17:', judged.stderr), judged.stderr
    assert re.search(r"Bad checksums:\s+1\b", judged.stdout), judged.stdout
