"""Build the images of the Dockerfile and try each of them: `python -m scripts.tools.images`."""
