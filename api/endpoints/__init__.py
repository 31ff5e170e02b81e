"""The table of endpoints, and the one way through for every request for work."""
