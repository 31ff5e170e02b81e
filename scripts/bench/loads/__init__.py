"""Loads on a running fleet: their requests (`plan`), a client (`caller`), and figures (`tally`).

`python -m scripts.bench.load` puts one load on running servers. The programs `curve`, `soak` and
`models` of this folder start their own fleets and put loads on them.
"""
