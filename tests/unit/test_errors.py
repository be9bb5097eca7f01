"""The error tree: stable codes and statuses that PostgreSQL cannot misread."""

import re
from pathlib import Path

import pytest

from pgrecall.app import taking_over
from pgrecall.app.context import RunContext, Surroundings
from pgrecall.cli.generate import documents, error_classes
from pgrecall.errors import (
    EXIT_PROVEN_ABSENT,
    InterruptedRunError,
    PgrecallError,
    ReportedError,
    StoreError,
)
from pgrecall.settings import RepositorySettings, ServerSettings, Settings
from pgrecall.system.progress import NoProgress

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


def test_a_signal_is_no_failure_that_somebody_could_carry_on_after() -> None:
    assert InterruptedRunError in set(error_classes())
    assert issubclass(InterruptedRunError, ReportedError)
    assert not issubclass(InterruptedRunError, Exception)
    assert issubclass(PgrecallError, Exception)


@pytest.mark.parametrize("error", [StoreError("it is away"), InterruptedRunError("SIGTERM")])
def test_a_best_effort_repository_does_not_swallow_a_signal(
    monkeypatch: pytest.MonkeyPatch, error: ReportedError
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(taking_over, "OpenedRepository", fail)
    settings = Settings(
        servers={"main": ServerSettings(name="main")},
        repositories={"spare": RepositorySettings(name="spare", role="best-effort", path="/x")},
    )
    surroundings = Surroundings(
        environment={}, progress=NoProgress(), run_id="test", approve=lambda *_, **__: True
    )
    context = RunContext(settings, surroundings)
    if isinstance(error, InterruptedRunError):
        with pytest.raises(InterruptedRunError):
            taking_over.owners(context)
    else:
        assert taking_over.owners(context) == {"spare": "unknown (it is away)"}
