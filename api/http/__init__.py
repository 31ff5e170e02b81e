"""The application, its middleware and HTTP itself: paths, methods, headers, errors."""
