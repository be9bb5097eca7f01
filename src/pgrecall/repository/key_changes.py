"""What is done to the keys of a repository: the first one, another one, another secret."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime, timedelta

from pgrecall.codec.aead import KEY_BYTES, DataKey
from pgrecall.errors import CorruptObjectError, KeyRefusedError, RepositoryError
from pgrecall.model.ids import DATA_KEY, created_at, new_id
from pgrecall.repository.envelopes import (
    Envelope,
    Introduction,
    add_envelope,
    key_check,
    open_envelope,
)
from pgrecall.repository.identity import (
    RepositoryIdentity,
    RootKey,
    found_repository,
    new_repository_id,
)
from pgrecall.repository.keyring import RepositoryKeys
from pgrecall.repository.wrapping import Unopened, Wrapping, open_wrapping
from pgrecall.settings.sections import RepositorySettings
from pgrecall.store.base import Store
from pgrecall.system.faults import reached


def create_encrypted_repository(
    settings: RepositorySettings, environment: Mapping[str, str], plain: Store, now: datetime
) -> RepositoryIdentity:
    """Make the first key, then ``repository.json`` that names it; durable when it returns.

    After a crash between the two there is no repository, and a key that nothing
    names. Raises as create_repository; KeyMissingError, KeyRefusedError.
    """
    wrapping = open_wrapping(settings, environment)
    key = DataKey(new_id(DATA_KEY, now), os.urandom(KEY_BYTES))
    repository_id = new_repository_id()
    _add(plain, Introduction(repository_id, key, None), wrapping, now)
    reached("init.first-key")
    root = RootKey(key.key_id, key_check(key))
    return found_repository(plain, RepositoryIdentity(repository_id, now, root))


def rotate(keys: RepositoryKeys, now: datetime) -> DataKey:
    """Add a data key, for every object from now on; durable when it returns.

    Raises KeyMissingError, KeyRefusedError, StoreError.
    """
    root = keys.root()
    newest = created_at(keys.current().key_id)
    # The newest id is the one that counts, whatever the clock of this host says.
    moment = max(now, newest + timedelta(seconds=1))
    key = DataKey(new_id(DATA_KEY, moment), os.urandom(KEY_BYTES))
    reached("key.rotate")
    _add(keys.store, Introduction(keys.repository_id(), key, root), keys.wrapping, now)
    return key


def rewrap(keys: RepositoryKeys, key_id: str, wrapping: Wrapping, now: datetime) -> Envelope:
    """Add an envelope of one key for another secret; ``keys`` is opened by one that works.

    Raises KeyMissingError, KeyRefusedError, StoreError.
    """
    key = keys.find(key_id)
    if key is None:
        raise RepositoryError(f"the repository has no key {key_id}")
    root = keys.root()
    introduction = Introduction(
        keys.repository_id(), key, None if key.key_id == root.key_id else root
    )
    reached("key.rewrap")
    return _add(keys.store, introduction, wrapping, now)


def opens(wrapping: Wrapping, envelope: Envelope) -> bool:
    """Whether the secret opens this envelope; raises KeyUnavailableError."""
    try:
        open_envelope(envelope, wrapping)
    except Unopened:
        return False
    return True


def _add(store: Store, introduction: Introduction, wrapping: Wrapping, now: datetime) -> Envelope:
    try:
        return add_envelope(store, introduction, wrapping, now)
    except Unopened as error:
        raise KeyRefusedError(
            f"{wrapping.shown} does not open what was wrapped with it just now: {error}",
            hint="the identity must be one of the recipients; unwrap_command must undo "
            "wrap_command",
        ) from error
    except CorruptObjectError as error:
        raise RepositoryError(f"the envelope is not what was stored: {error.message}") from error
