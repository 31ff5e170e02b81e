"""Small clients to begin with. Each file stands alone and needs only `httpx`.

`docs/clients.md` shows how they are used.
"""
