"""Builds the images of the Dockerfile and tries each of them: `python -m scripts.tools.images`."""
