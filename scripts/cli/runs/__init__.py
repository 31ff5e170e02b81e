"""Runs over a file: an output that a run goes on from, and its progress."""
