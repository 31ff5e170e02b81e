"""Loads on a running fleet: their plan (`plan`), the client (`caller`), and the figures of their
outcome (`tally`).

`python -m scripts.load` puts one load on a server. `python -m scripts.loads.curve` and `python -m
scripts.loads.soak` start fleets of their own and measure how they bear it.
"""
