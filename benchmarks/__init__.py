"""Measurements: what `make bench` runs, and longer trials than the tests can afford."""
