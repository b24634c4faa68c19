"""Numbers, sizes, durations and times as people read them, in every output; a unit is not parted from its number."""

import json
import math
from datetime import UTC, datetime
from typing import Any

NO_BREAK = "\u00a0"
NONE = "–"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
# Powers of ten of numbers that are written out.
WRITTEN_OUT = range(-4, 7)


def minus(text: str) -> str:
    """The same with true minus signs."""
    return text.replace("-", "−")


def number(value: float | None, digits: int = 4, zeros: bool = False) -> str:
    """`0.0012`, `12 346`, `1234` or `1·10⁻⁷`: so many significant digits; a dash for none. zeros: also at the end."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return minus(str(value))
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    exponent = int(power)
    if exponent in WRITTEN_OUT:
        text = f"{value:,.{max(0, digits - 1 - exponent)}f}".replace(",", NO_BREAK if exponent > 3 else "")
        return minus(text if zeros else _trimmed(text))
    return minus(f"{_trimmed(mantissa)}·10{str(exponent).translate(SUPERSCRIPTS)}")


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def scaled(value: float, unit: str) -> str:
    """`12.3 GFLOP`: three significant digits and the prefix that suits them, by powers of 1000."""
    power = 0
    while float(f"{abs(value):.3g}") >= 1000 and power < len(PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g}{NO_BREAK}{PREFIXES[power]}{unit}"


def size(count: float) -> str:
    """A number of bytes as `999 bytes` or `12.3 MB`."""
    return f"{count:.0f}{NO_BREAK}bytes" if count < 1000 else scaled(count, "B")


def duration(seconds: float | None) -> str:
    """`12 s`, `3.4 min` or `5.6 h`; a dash for none."""
    if seconds is None:
        return NONE
    if round(seconds) < 60:
        return f"{seconds:.0f}{NO_BREAK}s"
    if round(seconds / 60, 1) < 60:
        return f"{seconds / 60:.1f}{NO_BREAK}min"
    return f"{number(round(seconds / 3600), 9) if seconds > 360_000 else f'{seconds / 3600:.1f}'}{NO_BREAK}h"


def clock(seconds: float) -> str:
    """A duration that runs as `h:mm:ss`."""
    whole = round(max(0.0, seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def moment(seconds: float | None) -> str:
    """A time since the epoch as UTC; a dash for none."""
    return NONE if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def plural(count: int, noun: str) -> str:
    """`1 run`, `2 runs`, `2 processes`."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count}{NO_BREAK}{noun}{ending}"


def value(found: Any) -> str:
    """A value of a file: text as it is, others as JSON has them."""
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def one_line(text: object) -> str:
    """Words parted by single spaces: no line break, nor what moves a terminal's cursor."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
