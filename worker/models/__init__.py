"""The networks and their checkpoints, each in its trainer's format."""
