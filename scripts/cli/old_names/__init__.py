"""The servers that older documents start, as the fleet: their commands, flags and variables on our
settings."""
