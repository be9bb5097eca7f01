"""The policy that holds for a server in a repository, from settings and profiles."""

from __future__ import annotations

import msgspec

from pgrecall.model.policies import KEEP_RULES, PROFILES, Policy
from pgrecall.settings import PolicySettings, RepositorySettings, ServerSettings, Settings

_FIELDS = (*KEEP_RULES, "pitr_window_hours", "rpo_seconds", "rto_seconds")


def policy_of(settings: Settings, server: ServerSettings, repository: RepositorySettings) -> Policy:
    """The repository's own, else the server's, else that of [retention]; else one that keeps all.

    Names were proven when the settings were loaded. A policy of one's own wins over a
    profile of the same name.
    """
    name = repository.retention or server.retention or settings.retention.policy
    if not name:
        return Policy()
    own = settings.policies.get(name)
    return policy_from(own) if own is not None else named_profile(name)


def named_profile(name: str) -> Policy:
    """A shipped profile as a policy of that name."""
    return msgspec.structs.replace(PROFILES[name], name=name)


def policy_from(own: PolicySettings) -> Policy:
    """A policy of the configuration: its profile, changed field by field."""
    base = PROFILES[own.profile] if own.profile else Policy()
    changes = {field: getattr(own, field) for field in _FIELDS if getattr(own, field) >= 0}
    return msgspec.structs.replace(base, name=own.name, **changes)
