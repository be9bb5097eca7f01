"""What a run's record costs in requests, and concurrent writers, on a real S3 server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from pgrecall.repository.chain_proof import prove_chains
from pgrecall.repository.journal import Journal
from pgrecall.repository.run_chains import RunChains
from pgrecall.store.opening import open_store
from tests.support.object_servers import S3Server
from tests.support.recording_proxy import recording_proxy
from tests.support.s3_fixtures import S3Settings
from tests.unit.test_run_chains import OWN, SERVER, record


def test_a_run_costs_ten_requests_and_many_make_one_chain(
    s3: S3Server, s3_settings: S3Settings, secret_environment: dict[str, str]
) -> None:
    with recording_proxy(s3.endpoint) as proxy:
        store = open_store(s3_settings(endpoint=proxy.endpoint), secret_environment)
        assert store.put("repository.json", [b"{}"])
        assert Journal(store, SERVER).add(record(1, "aa"), OWN, "db1")
        store = open_store(s3_settings(endpoint=proxy.endpoint), secret_environment)
        proxy.requests.clear()
        assert Journal(store, SERVER).add(record(2, "aa"), OWN, "db1")
        methods = sorted(request.partition(" ")[0] for request in proxy.requests)
        # The listings of parts and of the last part, two puts that are looked after, the last
        # record, whether both are filed, and the repository's first object.
        assert methods == ["GET"] * 3 + ["HEAD"] * 5 + ["PUT"] * 2, proxy.requests

    def add(word: str) -> bool:
        one = open_store(s3_settings(), secret_environment)
        return all(Journal(one, SERVER).add(record(n, word), OWN, "db1") for n in range(5))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(add, ["ba", "bb", "bc", "bd"]))
    store = open_store(s3_settings(), secret_environment)
    proof = prove_chains(store, SERVER, OWN, [])
    assert (proof.findings, proof.records) == ((), 22)
    assert RunChains(store, SERVER, OWN).end("db1").sequence == 22
