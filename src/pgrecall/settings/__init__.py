"""Settings: TOML in, checked values out; every setting is declared once (light)."""

from pgrecall.settings.collection import Settings
from pgrecall.settings.dumps import DrillSettings, DumpSettings
from pgrecall.settings.loading import load_settings
from pgrecall.settings.policies import PolicySettings, RetentionSettings
from pgrecall.settings.references import resolve_secret
from pgrecall.settings.replication import ReplicationSettings
from pgrecall.settings.sections import (
    AgentSettings,
    BackupSettings,
    CopySettings,
    LogSettings,
    ReceiveSettings,
    RepositorySettings,
    RestoreSettings,
    RunsSettings,
    ScheduleSettings,
    ServerSettings,
    TargetSettings,
    VerifySettings,
    WalSettings,
)

__all__ = [
    "AgentSettings",
    "BackupSettings",
    "CopySettings",
    "DrillSettings",
    "DumpSettings",
    "LogSettings",
    "PolicySettings",
    "ReceiveSettings",
    "ReplicationSettings",
    "RepositorySettings",
    "RestoreSettings",
    "RetentionSettings",
    "RunsSettings",
    "ScheduleSettings",
    "ServerSettings",
    "Settings",
    "TargetSettings",
    "VerifySettings",
    "WalSettings",
    "load_settings",
    "resolve_secret",
]
