"""Roles get other names where a script says who owns or may something, and nowhere else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgrecall.dump.role_names import RoleNames, parse_role_map
from pgrecall.errors import UsageError
from pgrecall.further_errors import LoadError

ROLES = {"old": "new", 'O"dd': 'e"ven', "größe": "Größe"}

# What stands between < and > is exchanged.
CHANGED = [
    "ALTER TABLE public.old OWNER TO <old>;",
    'ALTER FUNCTION f(old text) OWNER TO <"O""dd">;',
    "ALTER LARGE OBJECT 16400 OWNER TO <größe>;",
    "GRANT SELECT,INSERT ON TABLE old.old TO <old>;",
    "GRANT ALL ON SCHEMA a TO <OLD> WITH GRANT OPTION;",
    "GRANT SELECT(old) ON TABLE a TO other GRANTED BY <old>;",
    "REVOKE ALL ON FUNCTION f(old) FROM <old>;",
    "GRANT <old>, other TO <old> WITH ADMIN OPTION GRANTED BY <old>;",
    "REVOKE ADMIN OPTION FOR <old> FROM other;",
    "ALTER DEFAULT PRIVILEGES FOR ROLE <old> IN SCHEMA old GRANT SELECT ON TABLES TO <old>;",
    "CREATE POLICY old ON old FOR SELECT TO <old>, PUBLIC, <old> USING ((owner = 'old'));",
    "CREATE SCHEMA old AUTHORIZATION <old>;",
    "CREATE USER MAPPING FOR <old> SERVER old OPTIONS (\"user\" 'old');",
    "SET SESSION AUTHORIZATION <'old'>;",
    "ALTER ROLE <old> IN DATABASE old SET a TO 'old';",
    "-- it's ; \"\n/* ' */ ALTER TABLE a -- x\n OWNER TO <old> ;",
]
NEW = {"old": '"new"', "OLD": '"new"', "'old'": '"new"', '"O""dd"': '"e""ven"', "größe": '"Größe"'}

KEPT = [
    "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS $_$ GRANT a TO old; ALTER OWNER; $_$;",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT $1 - 2 / 3; SELECT old; END;",
    "COMMENT ON TABLE a IS 'GRANT x TO old; it''s';",
    "COMMENT ON TABLE a IS E'\\';GRANT x TO old; ';",
    "COPY public.t (a) FROM stdin;\n;\nGRANT x ON TABLE y TO old;\n\\.x\n\\\\.\n\\.\n",
    "COPY public.t (a) FROM stdin;\n\\.\n",
    "\\connect old\n",
    "\\restrict abc\nSELECT 1;\n\\unrestrict abc\n",
    'ALTER TABLE a OWNER TO "OLD";',
    "ALTER TABLE old RENAME TO old;",
    "CREATE TABLE t (a int DEFAULT 1 - 2, b text DEFAULT 'old'::text COLLATE \"C\");",
    "INSERT INTO a$b$ VALUES ('old', 1e5, $$x'$$, 'a\\');",
]


def mapped(script: bytes, sizes: int = 1 << 20) -> bytes:
    out: list[bytes] = []
    names = RoleNames(ROLES, out.append)
    for at in range(0, len(script), sizes):
        names.write(script[at : at + sizes])
    names.close()
    return b"".join(out)


@pytest.mark.parametrize("sizes", [1, 7, 1 << 20])
@pytest.mark.parametrize("marked", [*CHANGED, *KEPT])
def test_names_of_roles_are_exchanged(marked: str, sizes: int) -> None:
    marked += "\nALTER TABLE z OWNER TO <old>;\n"
    wanted = re.sub("<(.*?)>", lambda match: NEW[match[1]], marked)
    assert mapped(_plain(marked), sizes).decode() == wanted


def _plain(marked: str) -> bytes:
    return re.sub("<(.*?)>", r"\1", marked).encode()


def test_backslashes_escape_where_the_script_says_so() -> None:
    script = b"SET standard_conforming_strings = off;\nCOMMENT ON a IS '\\'; GRANT a TO old;';\n"
    assert mapped(script) == script


@pytest.mark.parametrize(
    "cut", ["GRANT a TO old", "SELECT 'x", "COPY a FROM stdin;\n1\n", "SELECT $a$ x; $b$;"]
)
def test_a_script_that_ends_in_the_middle_is_refused(cut: str) -> None:
    with pytest.raises(LoadError, match="in the middle"):
        mapped(cut.encode())


@given(st.lists(st.sampled_from(CHANGED + KEPT)), st.integers(1, 40))
def test_the_pieces_do_not_matter(statements: list[str], sizes: int) -> None:
    script = _plain("\n".join(statements) + "\n")
    assert mapped(script, sizes) == mapped(script)


@pytest.mark.parametrize("text", ["old", "=new", "old=", ""])
def test_what_maps_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="maps no role"):
        parse_role_map([text])
    with pytest.raises(UsageError, match="twice"):
        parse_role_map(["a=b", "a=c"])
