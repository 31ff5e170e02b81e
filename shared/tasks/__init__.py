"""The tasks: inputs, options, results, and the runners that can do them."""
