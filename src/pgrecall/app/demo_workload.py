"""The demonstration's data, its accident, and what is known of it: SQL and pgbench."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime

import msgspec

from pgrecall.app.demo_place import PORT, SUPERUSER, Place, Programs, run_program, started
from pgrecall.app.demo_report import Proof
from pgrecall.postgres.connection import Connection
from pgrecall.postgres.tools import find_program

ORDERS = 20_000
ORDERS_AFTER_POINT = 500
RESTORE_POINT = "before_the_release"
_CLIENTS = 2
_LONGER_THAN_ANY_BACKUP_SECONDS = 3600
_XID_MASK = 0xFFFF_FFFF  # a recovery target knows no epoch


class Known(msgspec.Struct, frozen=True):
    """What a server holds: counts, and checksums over every row."""

    orders: int
    orders_md5: str
    orders_after_point: int
    accounts: int
    accounts_sum: int
    history: int
    history_sum: int


class Accident(msgspec.Struct, frozen=True):
    """``DROP TABLE``: its transaction, and the server's clock right after it."""

    xid: int
    at: datetime


class Workload:
    """pgbench's bank and a table of orders in one server."""

    def __init__(self, place: Place, programs: Programs, environment: Mapping[str, str]) -> None:
        self._place = place
        self._environment = environment
        self._pgbench = [str(find_program(programs.directory, "pgbench"))]
        self._pgbench += ["-h", str(place.directory), "-p", str(PORT), "-U", SUPERUSER]

    def load(self, scale: int, connection: Connection) -> None:
        """``scale`` times 100,000 accounts, and the orders."""
        self._run("-i", "-q", "-s", str(scale))
        connection.rows(
            "CREATE TABLE public.orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
            " customer text NOT NULL, amount numeric(10,2) NOT NULL, note text NOT NULL,"
            " ordered_at timestamptz NOT NULL DEFAULT clock_timestamp())"
        )
        add_orders(connection, ORDERS, "")

    def write(self, transactions: int) -> None:
        """That many transactions, and wait for them."""
        self._run("-n", "-c", str(_CLIENTS), "-t", str(transactions // _CLIENTS))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Transactions as fast as they go, until the block is left."""
        with started(
            self._argv("-n", "-c", str(_CLIENTS), "-T", str(_LONGER_THAN_ANY_BACKUP_SECONDS)),
            self._place,
            self._environment,
        ):
            yield

    def _run(self, *options: str) -> None:
        run_program(self._argv(*options), self._place, self._environment)

    def _argv(self, *options: str) -> list[str]:
        return [*self._pgbench, *options, "postgres"]


def add_orders(connection: Connection, count: int, note: str) -> None:
    """Commit that many orders in one transaction."""
    connection.rows(
        "INSERT INTO public.orders (customer, amount, note)"
        " SELECT 'customer ' || n %% 997, (n * 7919 %% 100000) / 100.0, %s"
        " FROM generate_series(1, %s) AS n",
        (note, count),
    )


def committed(connection: Connection) -> int:
    """How many transactions pgbench has committed."""
    return int(connection.value("SELECT count(*) FROM public.pgbench_history"))


def know(connection: Connection) -> Known:
    """Count and sum up, in one snapshot."""
    row = connection.row(
        "SELECT o.*, a.*, h.* FROM"
        " (SELECT count(*), md5(string_agg(o::text, E'\\n' ORDER BY id)),"
        "   count(*) FILTER (WHERE note = %s) FROM public.orders AS o) AS o,"
        " (SELECT count(*), sum(abalance) FROM public.pgbench_accounts) AS a,"
        " (SELECT count(*), coalesce(sum(delta), 0) FROM public.pgbench_history) AS h",
        (RESTORE_POINT,),
    )
    return Known(int(row[0]), str(row[1]), *(int(value) for value in row[2:]))


def cause_accident(connection: Connection) -> Accident:
    """Drop the orders, and commit; the transaction's number is asked for inside of it."""
    connection.rows("BEGIN")
    xid = int(connection.value("SELECT pg_catalog.txid_current()"))
    connection.rows("DROP TABLE public.orders")
    connection.rows("COMMIT")
    at: datetime = connection.value("SELECT pg_catalog.clock_timestamp()")
    return Accident(xid & _XID_MASK, at)


def has_orders(connection: Connection) -> bool:
    """Whether the table is there."""
    return bool(connection.value("SELECT pg_catalog.to_regclass('public.orders') IS NOT NULL"))


def compare(known: Known, found: Known | None) -> list[Proof]:
    """Every comparison, in words; ``found`` None: the table of orders is not there."""
    if found is None:
        return [Proof("orders: rows", f"{known.orders:,}", "no such table")]
    pairs = (
        ("orders: rows", known.orders, found.orders),
        ("orders: after the restore point", known.orders_after_point, found.orders_after_point),
        ("accounts: rows", known.accounts, found.accounts),
        ("accounts: sum of balances", known.accounts_sum, found.accounts_sum),
        ("transfers: rows", known.history, found.history),
        # Each transfer changes one account: transactions came back whole or not at all.
        ("transfers: sum, as the balances", known.accounts_sum, found.history_sum),
    )
    proofs = [Proof(what, f"{one:,}", f"{other:,}") for what, one, other in pairs]
    proofs.insert(1, Proof("orders: md5 over all rows", known.orders_md5, found.orders_md5))
    return proofs
