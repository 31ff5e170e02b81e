"""The fleet as a whole: who is there, and which models it knows."""
