"""Engines elsewhere: the requests to them over HTTP, and what is asked and answered in each dialect."""
