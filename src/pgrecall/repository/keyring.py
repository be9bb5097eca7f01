"""The keys of one encrypted repository: found, opened, kept, and looked up again.

The repository's first key, the root, is named by ``repository.json``; a key counts
when it is the root or was introduced by it (envelopes.py). The newest one that
counts is the one for new objects. Others hosts add keys: the list is read again when
an object names an unknown key, and before an object is written when it is a minute
old, so that every process takes up a new key without a restart.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable, Mapping

from pgrecall.codec.aead import DataKey
from pgrecall.errors import (
    CorruptObjectError,
    KeyRefusedError,
    ObjectMissingError,
    PgrecallError,
    RepositoryError,
    UsageError,
)
from pgrecall.further_errors import KeyUnavailableError
from pgrecall.model.ids import DATA_KEY, check_id
from pgrecall.repository.envelopes import (
    Envelope,
    is_introduced,
    key_check,
    list_envelopes,
    open_envelope,
    read_envelope,
)
from pgrecall.repository.identity import (
    RepositoryIdentity,
    RootKey,
    not_encrypted,
    read_repository,
)
from pgrecall.repository.wrapping import Unopened, Wrapping, open_wrapping
from pgrecall.settings.sections import RepositorySettings
from pgrecall.store.base import Store
from pgrecall.store.encrypted import EncryptedStore

LOOK_AGAIN_SECONDS = 60.0


class RepositoryKeys:
    """Keys of the repository in ``store`` (the plain one), opened by ``wrapping``.

    ``name`` is the repository's in the settings. From any number of threads.
    Nothing is read before the first question.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        wrapping: Wrapping,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.store = store
        self.wrapping = wrapping
        self._clock = clock
        self._lock = threading.RLock()
        self._identity: RepositoryIdentity | None = None
        self._numbers: dict[str, list[int]] = {}
        self._listed_at: float | None = None
        self._opened: dict[str, DataKey] = {}
        self._current = ""

    def repository_id(self) -> str:
        """Raises NotEncryptedError, RepositoryError, StoreError."""
        return self._read_identity().repository_id

    def current(self) -> DataKey:
        """The key for new objects.

        Raises KeyRefusedError, CorruptObjectError, StoreError (of which KeyUnavailableError).
        """
        with self._lock:
            return self._open(self.current_id())

    def current_id(self) -> str:
        """The id of the key for new objects; opens only the first key. Raises as current."""
        with self._lock:
            now = self._clock()
            if self._listed_at is None or now - self._listed_at >= LOOK_AGAIN_SECONDS:
                self._list()
            if not self._current:
                self._current = self._newest()
            return self._current

    def find(self, key_id: str) -> DataKey | None:
        """The key of that id, None when the repository has none that counts; raises as current."""
        # Not behind the lock: who holds it may wait for a KMS, for another key.
        found = self._opened.get(key_id)
        if found is not None:
            return found
        with self._lock:
            try:
                check_id(key_id, DATA_KEY)
            except UsageError:
                return None
            if key_id == self._root().key_id:
                return self._open(key_id)  # never absent: without it nothing can be told
            if not self._has(key_id):
                self._list()  # added, or wrapped anew, since it was listed
                if not self._has(key_id):
                    return None
            return self._open(key_id)

    def root(self) -> DataKey:
        """The first key; raises as current."""
        with self._lock:
            return self._open(self._root().key_id)

    def numbers(self) -> Mapping[str, list[int]]:
        """The numbers of all envelopes by key id, listed now; raises StoreError."""
        with self._lock:
            self._list()
            return dict(self._numbers)

    def envelopes(self, key_id: str) -> list[Envelope]:
        """The envelopes of a listed key that count, newest first.

        Damaged ones are passed over as long as there is another; raises CorruptObjectError
        when there is not, and as current.
        """
        found: list[Envelope] = []
        damage: list[PgrecallError] = []
        for number in reversed(self._numbers.get(key_id, [])):
            try:
                envelope = read_envelope(self.store, key_id, number)
            except ObjectMissingError:
                continue  # removed since it was listed
            except (CorruptObjectError, RepositoryError) as error:
                damage.append(error)
                continue
            if self.counts(envelope):
                found.append(envelope)
        if damage and not found:
            raise damage[0]
        return found

    def counts(self, envelope: Envelope) -> bool:
        """Whether an envelope was made by somebody who has the first key; raises as current."""
        with self._lock:
            root = self._root()
            if envelope.repository_id != self.repository_id():
                return False  # left by an init that did not end, or lost a race
            if envelope.key_id == root.key_id:
                return hmac.compare_digest(envelope.check, root.check)
            return is_introduced(envelope, self._open(root.key_id))

    # --- with the lock ---------------------------------------------------------------

    def _root(self) -> RootKey:
        root = self._read_identity().root
        assert root is not None
        return root

    def _read_identity(self) -> RepositoryIdentity:
        with self._lock:
            if self._identity is None:
                identity = read_repository(self.store)
                if identity.root is None:
                    raise not_encrypted(self.store)
                self._take_given(identity.repository_id, identity.root)
                self._identity = identity
            return self._identity

    def _take_given(self, repository_id: str, root: RootKey) -> None:
        """Keys that were exported need no envelope, so that a lost one is no loss."""
        given = self.wrapping.given(repository_id)
        keys = {key_id: DataKey(key_id, secret) for key_id, secret in given.items()}
        if keys and (root.key_id not in keys or key_check(keys[root.key_id]) != root.check):
            raise KeyRefusedError(
                f"{self.wrapping.shown} lack the first key of {self.store.name}, {root.key_id}",
                hint="use the output of `pgrecall key export` of this repository as it is",
            )
        self._opened.update(keys)

    def _list(self) -> None:
        self._read_identity()
        listed = list_envelopes(self.store)
        known = {**{key_id: [] for key_id in self._opened}, **listed}
        self._numbers = dict(sorted(known.items()))
        self._listed_at = self._clock()
        self._current = ""

    def _newest(self) -> str:
        self._open(self._root().key_id)
        return next(key_id for key_id in reversed(self._numbers) if self._is_usable(key_id))

    def _is_usable(self, key_id: str) -> bool:
        """Whether a key counts; one that is damaged does not keep others from being used.

        ``key check`` and ``verify`` name it. Whoever can put objects could stop all backups
        otherwise, and who can damage an envelope could as well delete it.
        """
        try:
            return key_id in self._opened or bool(self.envelopes(key_id))
        except CorruptObjectError:
            return False

    def _has(self, key_id: str) -> bool:
        return key_id in self._numbers and bool(self.envelopes(key_id))

    def _open(self, key_id: str) -> DataKey:
        found = self._opened.get(key_id)
        if found is not None:
            return found
        if self._listed_at is None:
            self._list()
        try:
            return self._open_listed(key_id)
        except (RepositoryError, KeyUnavailableError):
            known = self._numbers.get(key_id)
            self._list()
            if self._numbers.get(key_id) == known:
                raise
        return self._open_listed(key_id)  # it was wrapped anew since it was listed

    def _open_listed(self, key_id: str) -> DataKey:
        envelopes = self.envelopes(key_id)
        if not envelopes:
            raise RepositoryError(
                f"{self.store.name} is encrypted, and its key {key_id} is not there",
                hint="bring keys/ back from another copy of the repository",
            )
        reasons = []
        outage: KeyUnavailableError | None = None
        for envelope in envelopes:
            try:
                found = self._opened[key_id] = open_envelope(envelope, self.wrapping)
            except (Unopened, KeyUnavailableError) as error:
                reasons.append(f"envelope {envelope.number}: {error}")
                outage = error if isinstance(error, KeyUnavailableError) else outage
                continue
            return found
        secret = f"{self.wrapping.shown} of repository {self.name}"
        about = f"the key {key_id} in {self.store.name} ({'; '.join(reasons)})"
        if outage is not None:
            raise KeyUnavailableError(
                f"{secret} could not be asked to open {about}", hint=outage.hint
            ) from outage
        raise KeyRefusedError(
            f"{secret} does not open {about}",
            hint="configure the secret with which it was wrapped last; when it is lost, the "
            "output of key export opens the repository (docs/encryption.md)",
        )


def encrypted_store(
    settings: RepositorySettings, environment: Mapping[str, str], plain: Store
) -> EncryptedStore:
    """The store of an encrypted repository over its plain one; nothing is read yet.

    Raises KeyMissingError when the secret is not where the settings say.
    """
    return EncryptedStore(plain, repository_keys(settings, environment, plain))


def repository_keys(
    settings: RepositorySettings, environment: Mapping[str, str], plain: Store
) -> RepositoryKeys:
    """The keys of a repository in its plain store; as encrypted_store."""
    return RepositoryKeys(settings.name, plain, open_wrapping(settings, environment))
