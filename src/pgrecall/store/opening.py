"""From settings to a store.

Light for local stores: the module of object storage is imported by its name
only when a repository asks for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import cast

from pgrecall.errors import SettingsError
from pgrecall.settings.references import resolve_secret
from pgrecall.settings.sections import RepositorySettings
from pgrecall.store.anchored import AnchoredStore
from pgrecall.store.base import Store
from pgrecall.store.local import PACK_BYTES, LocalStore
from pgrecall.store.retry import Backoff, RetryStore

# The object that every repository holds (docs/format.md): without it, nothing is proven absent.
ANCHOR = "repository.json"

# Kind of store -> module with ``open_object_store(settings, secrets)``.
_MODULES = {
    "s3": "pgrecall.store.object_opening",
    "gcs": "pgrecall.store.object_opening",
    "azure": "pgrecall.store.object_opening",
}

_SECRETS = ("access_key", "secret_key", "session_token", "account_key", "credentials_file")


def open_store(
    settings: RepositorySettings,
    environment: Mapping[str, str],
    *,
    is_anchored: bool = True,
) -> Store:
    """The store of one repository; secrets are resolved through ``environment``.

    Nothing is sent to the store. ``is_anchored=False`` for ``init`` and probes,
    before the repository's first object is there: then an empty directory or
    bucket is taken at its word (see anchored.py).

    Raises SettingsError for settings that contradict each other and secrets
    that cannot be found.
    """
    inner: Store
    if settings.store == "local":
        inner = _local(settings)
    elif settings.store in _MODULES:
        module = importlib.import_module(_MODULES[settings.store])
        opener = cast(
            "Callable[[RepositorySettings, Mapping[str, str]], Store]", module.open_object_store
        )
        secrets = {
            name: resolve_secret(str(getattr(settings, name)), environment) for name in _SECRETS
        }
        inner = opener(settings, secrets)
    else:
        raise SettingsError(f"repository {settings.name}: no store of kind {settings.store!r}")
    if is_anchored:
        inner = AnchoredStore(inner, ANCHOR, guards_writes=settings.store == "local")
    return RetryStore(
        inner, Backoff(retries=settings.retries, total_seconds=settings.retry_seconds)
    )


def prepare_store(settings: RepositorySettings) -> None:
    """Make what ``init`` may make: the directory of a local store; buckets are made by hand.

    Raises StoreError.
    """
    if settings.store == "local":
        _local(settings).create_root()


def _local(settings: RepositorySettings) -> LocalStore:
    if not settings.path:
        raise SettingsError(
            f"repository {settings.name}: a local store needs a path",
            hint=f'write path = "/backup" into [repositories.{settings.name}]',
        )
    return LocalStore(settings.path, pack_bytes=settings.pack_bytes or PACK_BYTES)
