"""A streamed backup into a real S3 server, and what becomes of it when that server goes away."""

from __future__ import annotations

import json
from pathlib import Path

from pgrecall.errors import StoreError
from tests.e2e.test_s3 import (
    MakeProduct,
    own_s3,
    product_in,
    proxy,
    starts_again,
    stops_at,
)
from tests.support.object_servers import S3Server
from tests.support.recording_proxy import RecordingProxy
from tests.support.s3_fixtures import S3Settings

__all__ = ["own_s3", "product_in", "proxy"]

#: 6 MiB that do not compress: with packs of 256 KiB, dozens of them.
FILL = """
CREATE TABLE noise AS SELECT i AS id,
 (SELECT string_agg(sha512((i || '/' || j)::bytea), ''::bytea) FROM generate_series(1, 30) j) AS b
 FROM generate_series(1, 3000) i
"""
SUMS = "SELECT count(*), sum(id), md5(string_agg(b, ''::bytea ORDER BY id)) FROM noise"


def test_a_stream_into_s3_outlives_outages_and_comes_back_whole(
    product_in: MakeProduct,
    s3_settings: S3Settings,
    own_s3: S3Server,
    proxy: RecordingProxy,
    tmp_path: Path,
) -> None:
    product = product_in(s3_settings(endpoint=proxy.endpoint, pack_bytes=1 << 18))
    server = product.server
    server.sql(FILL)
    stream = ("backup", "--source", "stream", "--yes")
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgrecall%%'"
    # In the middle of the packs, and with everything sent.
    for word in ("/pack-0009", "/complete.json"):
        stopped = stops_at(own_s3, proxy, "PUT", "/backups/", word)
        finished = product.cli(*stream)
        assert stopped.is_set(), (word, finished)
        assert finished.returncode == StoreError.exit_status, finished
        assert finished.stderr.count("HINT: ") == 1
        server.wait_until(lambda: server.sql(sessions) == [(0,)], "the sessions are gone")
        assert server.sql("SELECT slot_name FROM pg_replication_slots") == []
        starts_again(own_s3, proxy)
        assert json.loads(product.cli("backups", "list", "--json").stdout)["backups"] == []
    done = product.cli(*stream, "--json")
    assert done.returncode == 0, done
    backup = json.loads(done.stdout)["backup"]
    assert backup["source"] == "stream"
    assert backup["totals"]["packs"] > 9
    server.sql("UPDATE noise SET id = id + 1 WHERE id % 3 = 0")
    product.switch()
    verified = product.cli("verify", "all", "--full", "--json")  # every file's own CRC, too
    assert verified.returncode == 0, verified
    copy = tmp_path / "copy"
    product.restore(copy, start=True)
    assert product.connected(copy).sql(SUMS) == server.sql(SUMS)
