"""Forecasts by the networks of the Chronos family."""
