"""The front: a stateless FastAPI application. It speaks HTTP and text, and loads no torch."""
