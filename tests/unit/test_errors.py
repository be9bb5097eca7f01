"""The error tree: stable codes and statuses that PostgreSQL cannot misread."""

import re
from pathlib import Path

from pgrecall.cli.generate import documents, error_classes
from pgrecall.errors import EXIT_PROVEN_ABSENT, PgrecallError

DOCS = Path(__file__).parents[2] / "docs"


def test_codes_and_statuses_are_unique() -> None:
    classes = list(error_classes())
    assert len(classes) > 20
    assert len({error.code for error in classes}) == len(classes)
    assert len({error.exit_status for error in classes}) == len(classes)


def test_no_status_can_be_misread() -> None:
    for error in error_classes():
        assert 1 <= error.exit_status <= 125
        assert error.exit_status != EXIT_PROVEN_ABSENT
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", error.code)
        assert error.__doc__


def test_an_error_carries_message_and_hint() -> None:
    error = PgrecallError("the store is full", hint="make room")
    assert (str(error), error.hint) == ("the store is full", "make room")


def test_generated_documents_are_up_to_date() -> None:
    for name, text in documents().items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, f"run make docs for {name}"
