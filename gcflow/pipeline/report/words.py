"""Numbers, times and sizes as the report writes them."""

import json
import math
from datetime import UTC, datetime
from typing import Any

NO_BREAK = "\u00a0"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
PLAIN = range(-4, 7)


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits and a true minus sign; a dash for none."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value).replace("-", "−")
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    exponent = int(power)
    if exponent in PLAIN:
        text = f"{value:,.{max(0, digits - 1 - exponent)}f}".replace(",", NO_BREAK)
        return _trimmed(text).replace("-", "−")
    return f"{_trimmed(mantissa)}·10{str(exponent).translate(SUPERSCRIPTS)}".replace("-", "−")


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def duration(seconds: float | None) -> str:
    """`12 s`, `3.4 min` or `5.6 h`; a dash for none."""
    if seconds is None:
        return "–"
    if round(seconds) < 60:
        return f"{seconds:.0f}{NO_BREAK}s"
    if round(seconds / 60, 1) < 60:
        return f"{seconds / 60:.1f}{NO_BREAK}min"
    return f"{seconds / 3600:.1f}{NO_BREAK}h"


def size(count: int) -> str:
    """A number of bytes as `12.3 MB`."""
    if count < 1000:
        return f"{count}{NO_BREAK}bytes"
    value, units = count / 1000, ["kB", "MB", "GB", "TB"]
    while float(f"{value:.3g}") >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g}{NO_BREAK}{units[0]}"


def moment(seconds: float | None) -> str:
    """A time since the epoch as UTC; a dash for none."""
    return "–" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def plural(count: int, noun: str) -> str:
    """`1 run`, `2 runs`, `2 processes`."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count}{NO_BREAK}{noun}{ending}"


def value(found: Any) -> str:
    """A value of a file: text as it is, others as JSON has them."""
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
