"""Texts as token ids, and token ids as texts."""
