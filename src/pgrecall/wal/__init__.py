"""The wal room."""
