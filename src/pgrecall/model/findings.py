"""Findings: what a check, a backup or a restore noticed."""

from __future__ import annotations

from typing import Literal

import msgspec

Severity = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One result: ``code`` is stable, ``subject`` names the thing, ``hint`` the cure."""

    severity: Severity
    code: str
    message: str
    subject: str = ""
    hint: str = ""


def worst(findings: list[Finding]) -> Severity:
    """The gravest severity among ``findings``; ok for none."""
    severities = {finding.severity for finding in findings}
    if "fail" in severities:
        return "fail"
    return "warn" if "warn" in severities else "ok"
