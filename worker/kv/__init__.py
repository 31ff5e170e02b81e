"""Keys and values: pages, prefixes, and attention over them."""
