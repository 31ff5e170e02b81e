"""Benchmarks with the same weights and prompts for all sides, in one run.

    python -m scripts.bench.engine --rows decode,single,prefill
    python -m scripts.bench.fleet --workers 2 --threads 1
    python -m scripts.bench.peers FOLDER

The first two are beside `transformers`, the last beside other servers. Only ratios are worth
comparing between runs: sides take turns, so that a busy machine slows all of them.
"""
