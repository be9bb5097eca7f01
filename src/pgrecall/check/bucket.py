"""What a bucket's own protection means for the backups in it: facts in, findings out. Pure."""

from __future__ import annotations

from pgrecall.model.bucket_facts import BucketFacts
from pgrecall.model.findings import Finding, Severity


def bucket_findings(facts: BucketFacts, subject: str, severity: Severity) -> list[Finding]:
    """One finding for each answer; what the store does not tell is one more, and no failure.

    ``severity``: of a bucket that anybody may read.
    """
    found = [_protection(facts, subject)] if facts.versioning is not None else []
    found += _public(facts, subject, severity)
    told = []
    if facts.logs_access is not None:
        told.append(f"access is {'' if facts.logs_access else 'not '}logged")
    if facts.encryption is not None:
        told.append(f"encrypts by default: {facts.encryption}")
    if told:
        found.append(_finding("ok", "bucket", subject, "; ".join(told)))
    if facts.untold:
        reasons = "; ".join(f"{question} ({why})" for question, why in facts.untold.items())
        found.append(
            _finding("ok", "bucket-untold", subject, f"the store does not tell: {reasons}")
        )
    return found


def _protection(facts: BucketFacts, subject: str) -> Finding:
    if facts.is_immutable:
        lasts = f"for {facts.lock_days} days" if facts.lock_days else "for no time of its own"
        said = f"objects are locked {lasts} ({facts.lock_mode})"
        return _finding("ok", "bucket-protection", subject, said)
    lock = {True: "object lock without a default retention", False: "no object lock"}
    locked = lock.get(facts.object_lock, "") if facts.object_lock is not None else ""
    mfa = ", MFA delete" if facts.mfa_delete else ""
    said = ", ".join(filter(None, [f"versioning is {facts.versioning}{mfa}", locked]))
    if facts.versioning == "enabled":
        return _finding("ok", "bucket-protection", subject, said)
    return _finding(
        "warn",
        "bucket-unprotected",
        subject,
        f"{said}: who may delete can destroy the backups for good",
        "turn versioning or object lock on, or keep s3:DeleteObject from the server (docs/iam.md)",
    )


def _public(facts: BucketFacts, subject: str, severity: Severity) -> list[Finding]:
    if facts.is_public:
        hint = "remove the policy that lets anybody in, and block public access"
        return [_finding(severity, "bucket-public", subject, "its policy is public", hint)]
    if facts.blocks_public_access:
        return [_finding("ok", "bucket", subject, "public access is blocked")]
    if facts.blocks_public_access is False:
        said = "public access is not blocked: a policy or an ACL could open the bucket"
        hint = "aws s3api put-public-access-block, with all four on"
        return [_finding("warn", "bucket-open", subject, said, hint)]
    return []


def _finding(severity: Severity, code: str, subject: str, message: str, hint: str = "") -> Finding:
    return Finding(severity=severity, code=code, subject=subject, message=message, hint=hint)
