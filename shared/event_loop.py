"""The event loop of a process that serves: uvloop's, where it can be installed."""

import asyncio

try:
    import uvloop
except ImportError:  # on Windows
    new_event_loop = asyncio.new_event_loop
else:
    new_event_loop = uvloop.new_event_loop
