"""Command-line programs: `aios` in `cli`, and those for developers in the other folders.

`bench`, `chaos`, `train`, `tools` and `examples` are not installed.
"""
