"""Speech in English by hibari."""
