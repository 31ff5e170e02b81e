"""The machine: its cores, memory and devices, and what fits them."""
