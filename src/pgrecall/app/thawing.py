"""Objects in an archive class: named before a restore counts on them."""

from __future__ import annotations

from pgrecall.app.context import RunContext
from pgrecall.further_errors import THAW, ObjectFrozenError
from pgrecall.model.manifest import Completion
from pgrecall.repository import layout
from pgrecall.settings import RepositorySettings
from pgrecall.store.bucket_questions import frozen_objects

_SHOWN = 5


def require_thawed(context: RunContext, settings: RepositorySettings, backup: Completion) -> None:
    """Raise ObjectFrozenError when packs of a backup must be thawed first.

    Those of the backups that it refers to as well. Where the service does not tell the
    classes, reading the first of them says it.
    """
    found: list[str] = []
    for backup_id in (backup.backup_id, *backup.references):
        prefix = layout.backup_prefix(context.server.name, backup_id)
        found += frozen_objects(settings, context.environment, prefix) or []
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ObjectFrozenError(
            f"{len(found)} objects that backup {backup.backup_id} needs lie in an archive class in"
            f" repository {settings.name!r}: {', '.join(found[:_SHOWN])}{more}",
            hint=THAW,
        )
