"""A worker's life between Redis and its engines: models, intake, outbox, reports."""
