"""Forecasts of series by Fracast-0."""
