"""Benchmarks: not part of the product, not part of the tests."""
