"""The whole fleet at one moment: who is there, what waits, and sums of that."""
