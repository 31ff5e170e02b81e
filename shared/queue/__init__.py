"""The queue in Redis: connections, keys, scripts, and the state that they keep."""
