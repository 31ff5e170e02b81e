"""The web app, a page in a browser for the public API of a fleet (`aios ui`).

It runs in a process of its own. `client.py` alone talks HTTP; each page is a file `page_*.py`.
"""
