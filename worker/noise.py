"""The integers behind every random choice: hashes of (seed, position) and of (seed, choice). No
tensor.

The hash is the finaliser of splitmix64 (Steele, Lea and Flood 2014), applied twice.
"""

MASK = (1 << 64) - 1
GOLDEN, MIX1, MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def position_key(seed: int, position: int) -> int:
    """64 bits that start the noise of one response position."""
    return mix((mix((seed + GOLDEN) & MASK) + (position + 1) * GOLDEN) & MASK)


def fold(seed: int, choice: int) -> int:
    """The seed of the n-th choice of a request; the first one's is the request's own."""
    return seed if choice == 0 else mix((mix(seed & MASK) ^ choice * MIX1) & MASK) >> 1


def mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * MIX1) & MASK
    value = ((value ^ (value >> 27)) * MIX2) & MASK
    return value ^ (value >> 31)
