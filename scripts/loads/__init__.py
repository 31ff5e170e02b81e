"""Loads on a running fleet: who asks when (`plan`), asking and listening (`caller`), and what came
of it (`tally`).

`python -m scripts.load` puts one load on a server. `python -m scripts.loads.curve` and `python -m
scripts.loads.soak` start fleets of their own and measure how they bear it.
"""
