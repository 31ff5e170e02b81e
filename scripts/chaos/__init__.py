"""Experiments that kill, stop, cut and restart parts of a running fleet, and check that its clients
notice nothing.

`python -m scripts.chaos --help` lists the scenarios.
`tests/chaos/` drives the same parts to exact phases of a job.
"""
