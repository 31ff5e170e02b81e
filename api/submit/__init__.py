"""The way into the queue: options, limits, admission, inputs that are bytes."""
