"""Training and measuring the sample models."""
