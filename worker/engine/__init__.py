"""The engines: they choose the work that is computed next, and the token that follows."""
