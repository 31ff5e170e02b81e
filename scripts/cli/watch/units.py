"""Numbers, sizes and times as short texts."""

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
    days = int(seconds // 86_400)
    hours = int(seconds % 86_400 // 3600)
    minutes = int(seconds % 3600 // 60)
    rest = int(seconds % 60)
    if seconds >= 86_400:
        return f"{days}d{hours:02d}h"
    if seconds >= 3600:
        return f"{hours}h{minutes:02d}m"
    if seconds >= 60:
        return f"{minutes}m{rest:02d}s"
    return f"{int(seconds)}s"


def _scaled(value: float, base: int, letters: str) -> str:
    """Return a number with the letter of the highest power of `base` that it reaches."""
    for letter in letters:
        value /= base
        if value < base or letter == letters[-1]:
            break
    if value < 10:
        return f"{value:.1f}{letter}"
    return f"{value:.0f}{letter}"
