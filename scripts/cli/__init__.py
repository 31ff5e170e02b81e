"""The `aios` command and its tools."""
