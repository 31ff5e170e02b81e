"""Looking at a fleet: what `aios status` prints once and `aios top` again and again."""
