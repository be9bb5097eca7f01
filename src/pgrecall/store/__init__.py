"""Dumb bytes by key: local directories, object storage, memory; wrappers."""
