"""Tools for whoever works on this project: generated files, images, mutations."""
