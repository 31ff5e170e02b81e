"""The servers that older documents name: each of them runs a fleet of this project.

Their flags and variables are mapped to our settings.
"""
