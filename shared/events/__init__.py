"""The log of a job, and how it is followed."""
