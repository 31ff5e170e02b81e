"""The queue in Redis: connections, keys, scripts, and what they keep."""
