"""Short Chinese sentences in English by cn2en."""
