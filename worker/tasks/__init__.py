"""The tasks that are done whole: inputs for a network, and results of its outputs."""
