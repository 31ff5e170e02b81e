"""Commands: `aios` in `cli`, and what is not installed in `bench`, `chaos`, `train` and `tools`."""
