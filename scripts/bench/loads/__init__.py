"""Loads on a running fleet: their plan (`plan`), the client (`caller`), and the figures of their
outcome (`tally`).

`python -m scripts.bench.load` puts one load on a server. `python -m scripts.bench.loads.curve` and `python -m
scripts.bench.loads.soak` start fleets of their own and measure how they bear it.
"""
