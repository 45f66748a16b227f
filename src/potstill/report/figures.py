"""How a number is written on the page: rounded to what it carries, always with its unit; a missing one is a dash.

The space before a unit is a no-break space, so figure and unit never part at the end of a line.
"""

import math

__all__ = [
    "MISSING",
    "count",
    "decimal",
    "nats",
    "number",
    "probability",
    "rate",
    "seconds",
    "share",
    "signed_nats",
    "size",
    "times",
]

MISSING = "—"
_GAP = "\u00a0"
_MINUS = "\u2212"


def decimal(value: float | None, digits: int = 3) -> str:
    """``digits`` significant digits, never fewer than stand before the point: 0.0123, 4.56, 78.9, 1,235."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    if value != 0 and round(abs(value), places) >= 10 ** (math.floor(math.log10(abs(value))) + 1):
        places = max(0, places - 1)
    return f"{value:,.{places}f}".replace("-", _MINUS)


def number(value: float) -> str:
    """A number that counts or names something, without needless decimals: 3, 2.5."""
    return f"{value:g}".replace("-", _MINUS)


def count(value: float | None, digits: int = 3) -> str:
    """A number of things: 4,000 in full below ten thousand, then 12.3 k, 4.12 M, 1.50 B."""
    if value is None:
        return MISSING
    if abs(value) < 10_000:
        return f"{value:,.0f}".replace("-", _MINUS)
    return _scaled(value, digits, ((1e9, "B"), (1e6, "M"), (1e3, "k")))


def size(num_bytes: float | None, digits: int = 3) -> str:
    """Bytes in decimal units: 512 B, 34.0 kB, 1.06 MB."""
    if num_bytes is None:
        return MISSING
    return _scaled(num_bytes, digits, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")))


def seconds(value: float | None) -> str:
    """A duration: 0.42 s, 12.3 s, 3 min 05 s, 2 h 03 min."""
    if value is None:
        return MISSING
    if value < 100:
        return f"{decimal(value, 2 if value < 1 else 3)}{_GAP}s" if value >= 0.01 else f"<{_GAP}0.01{_GAP}s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}{_GAP}min {rest:02d}{_GAP}s"
    return f"{minutes // 60}{_GAP}h {minutes % 60:02d}{_GAP}min"


def share(value: float | None, places: int = 1) -> str:
    """A share of one as per cent: 71.3 %."""
    return MISSING if value is None else f"{100 * value:.{places}f}{_GAP}%".replace("-", _MINUS)


def nats(value: float | None) -> str:
    """Nats to a thousandth, finer only where that would read as nothing: 0.243 nats, 0.00021 nats."""
    if value is None:
        return MISSING
    return f"{_thousandth(value)}{_GAP}nats"


def signed_nats(value: float | None) -> str:
    """Nats with their sign, for a difference: +0.042 nats."""
    if value is None:
        return MISSING
    return ("+" if value > 0 else "") + nats(value)


def probability(value: float | None) -> str:
    """A probability to a thousandth, finer only where that would read as nothing."""
    return MISSING if value is None else _thousandth(value)


def rate(tokens_per_s: float | None) -> str:
    """Three significant digits: 1,240 tokens/s."""
    if tokens_per_s is None:
        return MISSING
    if tokens_per_s >= 1000:
        tokens_per_s = round(tokens_per_s, 2 - math.floor(math.log10(tokens_per_s)))
    return f"{decimal(tokens_per_s)}{_GAP}tokens/s"


def times(ratio: float | None) -> str:
    """How many times: 14, 3.8, 1.04."""
    if ratio is None:
        return MISSING
    return decimal(ratio, 2 if ratio >= 2 else 3)


def _thousandth(value: float) -> str:
    if value == 0 or abs(value) >= 0.0005:
        return f"{value:,.3f}".replace("-", _MINUS)
    return decimal(value, 2) if abs(value) >= 1e-7 else f"<{_GAP}0.0000001"


def _scaled(value: float, digits: int, steps: tuple[tuple[float, str], ...]) -> str:
    divisor, unit = next((step for step in steps if abs(value) >= 0.9995 * step[0]), steps[-1])
    text = f"{value:.0f}" if divisor == 1 else decimal(value / divisor, digits)
    return f"{text}{_GAP}{unit}"
