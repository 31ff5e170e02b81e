"""The caller of a request: keys, what they allow, and what happens when they are revoked."""
