"""What tasks that are done whole do with a network: reading inputs, and making results of outputs."""
