"""Kills, stops, cuts and restarts parts of a running fleet, and checks that its clients notice
nothing.

`python -m scripts.chaos --help` runs the rows of the table; `tests/chaos/` drives the same parts to
exact phases.
"""
