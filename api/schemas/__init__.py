"""The bodies of each dialect."""
