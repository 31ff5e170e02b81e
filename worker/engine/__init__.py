"""The engines: which work is computed next, and which token comes of it."""
