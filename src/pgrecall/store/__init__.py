"""Dumb bytes by key: local directories, object storage, memory; wrappers that retry and that fail."""
