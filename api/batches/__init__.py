"""Batches: files of requests that are answered line by line, in idle time."""
