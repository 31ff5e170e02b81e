"""Webhooks: what callers are told by themselves, signed as Standard Webhooks says."""
