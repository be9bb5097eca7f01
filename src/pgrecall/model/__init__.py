"""Immutable values: no I/O, no clock, no logging."""
