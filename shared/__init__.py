"""The agreements between fronts and workers. No torch."""
