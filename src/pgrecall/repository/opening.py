"""From settings to the store of a repository, encrypted where the settings say so.

Light: what encryption needs is imported only for repositories that have it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import cast

from pgrecall.settings.sections import RepositorySettings
from pgrecall.store import opening
from pgrecall.store.base import Store

_ENCRYPTION = "pgrecall.repository.keyring"


def open_store(
    settings: RepositorySettings, environment: Mapping[str, str], *, is_anchored: bool = True
) -> Store:
    """As store.opening.open_store, with the encryption of the repository on top.

    Nothing is sent to the store yet. Raises SettingsError, and KeyMissingError when
    the secret that opens the keys is not where the settings say.
    """
    plain = opening.open_store(settings, environment, is_anchored=is_anchored)
    if not settings.encryption:
        return plain
    make = cast(
        "Callable[[RepositorySettings, Mapping[str, str], Store], Store]",
        importlib.import_module(_ENCRYPTION).encrypted_store,
    )
    return make(settings, environment, plain)
