"""Chaos experiments: they disturb a running fleet, and check that its clients notice nothing.

Parts of the fleet are killed, stopped, cut off and restarted. `python -m scripts.chaos --help`
lists the scenarios. `tests/chaos/` uses the same parts to disturb exact phases of a job.
"""
