"""Tools for developers of this project: generated files, images and mutation tests."""
