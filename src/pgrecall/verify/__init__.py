"""Proof that what is stored is whole: backups, packs, WAL. Reads only."""
