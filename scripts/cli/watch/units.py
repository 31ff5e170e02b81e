"""Numbers in few characters."""

_BINARY = "KMGT"
_DECIMAL = "kMGT"


def amount(value: float) -> str:
    """Return a number as `0`, `0.25`, `12.3`, `456` or `7.9k`."""
    if value == 0:
        return "0"
    if value < 10:
        return f"{value:.2f}"
    if value < 100:
        return f"{value:.1f}"
    if value < 1000:
        return f"{value:.0f}"
    return _scaled(value, 1000, _DECIMAL)


def memory(num_bytes: int) -> str:
    """Return bytes as `512B`, `1.5K`, `38M` or `2.0G`, in powers of 1024."""
    if num_bytes < 1024:
        return f"{num_bytes}B"
    return _scaled(num_bytes, 1024, _BINARY)


def age(seconds: float) -> str:
    """Return a time that may be short: `0`, `250us`, `3.1ms`, `42ms`, `1.2s`, then as `span`."""
    if seconds >= 60:
        return span(seconds)
    if seconds >= 0.9995:
        return f"{seconds:.1f}s"
    if seconds >= 0.01:
        return f"{1000 * seconds:.0f}ms"
    if seconds >= 0.001:
        return f"{1000 * seconds:.1f}ms"
    if seconds:
        return f"{1_000_000 * seconds:.0f}us"
    return "0"


def span(seconds: float) -> str:
    """Return a time as `42s`, `3m05s`, `2h07m` or `9d03h`."""
    for unit, size, part, part_size in (
        ("d", 86_400, "h", 3600),
        ("h", 3600, "m", 60),
        ("m", 60, "s", 1),
    ):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}{int(seconds % size // part_size):02d}{part}"
    return f"{int(seconds)}s"


def _scaled(value: float, base: int, letters: str) -> str:
    for letter in letters:
        value /= base
        if value < base or letter == letters[-1]:
            break
    if value < 10:
        return f"{value:.1f}{letter}"
    return f"{value:.0f}{letter}"
