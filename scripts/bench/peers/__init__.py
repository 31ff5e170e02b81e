"""This fleet and what people would use instead, on the same weights, prompts and machine."""
