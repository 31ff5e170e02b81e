"""The rows of each dialect, and the routes for operators, probes and browsers."""
