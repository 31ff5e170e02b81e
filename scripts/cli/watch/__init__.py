"""The view of a fleet that `aios status` prints once and `aios top` repeats."""
