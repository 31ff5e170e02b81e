"""What fronts and workers must agree on. No torch."""
