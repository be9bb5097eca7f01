"""Diagnoses: what a server, its repositories and its history say about trouble, in facts."""
