"""Small clients to begin with; each file stands alone and needs `httpx` only. `docs/clients.md`
shows them at work."""
