"""Benchmarks: our engine and fleet beside `transformers`, with the same weights and prompts, in one
run.

    python -m scripts.bench.engine --rows decode,single,prefill
    python -m scripts.bench.fleet --workers 2 --threads 1

Only ratios are worth comparing between runs: both sides take turns, so that a busy machine slows
both.
"""
