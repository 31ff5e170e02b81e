"""The integers behind every random choice: hashes of (seed, position) and of (seed, choice).

The hash is the finaliser of splitmix64 (Steele, Lea and Flood 2014), applied twice. This module
knows no tensor.
"""

MASK = (1 << 64) - 1
# The constants of splitmix64.
GOLDEN = 0x9E3779B97F4A7C15
MIX1 = 0xBF58476D1CE4E5B9
MIX2 = 0x94D049BB133111EB


def position_key(seed: int, position: int) -> int:
    """Return the 64 bits that start the noise of one response position."""
    seed_hash = mix((seed + GOLDEN) & MASK)
    return mix((seed_hash + (position + 1) * GOLDEN) & MASK)


def fold(seed: int, choice: int) -> int:
    """Return the seed of a choice of a request. Choice 0 has the request's own seed."""
    if choice == 0:
        return seed
    seed_hash = mix(seed & MASK)
    # Seeds have 63 bits.
    return mix((seed_hash ^ choice * MIX1) & MASK) >> 1


def mix(value: int) -> int:
    """Return the finaliser of splitmix64 of 64 bits, as 64 bits."""
    value = ((value ^ (value >> 30)) * MIX1) & MASK
    value = ((value ^ (value >> 27)) * MIX2) & MASK
    return value ^ (value >> 31)


def signed(value: int) -> int:
    """Return the signed integer that has the same 64 bits."""
    if value >> 63:
        return value - (1 << 64)
    return value
