"""The settings: their types, where they come from, and the command line."""
