"""Benchmarks: our engine and fleet compared with `transformers`, on the same weights and prompts.

    python -m scripts.bench.engine --rows decode,single,prefill
    python -m scripts.bench.fleet --workers 2 --threads 1

Both sides run in turns, so that a busy machine slows both. Between runs compare only the ratios.
"""
