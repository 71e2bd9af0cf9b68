"""How figures are written: one place, so that the page and the terminal never differ.

A figure that does not exist is a dash, never a zero; so is NaN, which a record from outside may hold.
"""

from __future__ import annotations

import json
import math
import unicodedata
from typing import Any

from goodnet.record import Share

DASH = "–"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def visible(text: str) -> str:
    """`text` on one line without control, direction-changing or unencodable characters (they become U+FFFD)."""
    if text.isprintable():
        return text
    return "".join(_visible_character(character) for character in text)


def _visible_character(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return " " if character.isspace() else "\ufffd"


def exists(value: float | None) -> bool:
    """Whether there is a figure to show."""
    return value is not None and math.isfinite(value)


def percent(value: float | None) -> str:
    """0.95 -> `95.0 %`."""
    return DASH if value is None or not exists(value) else f"{100 * value:.1f} %"


def share(value: Share | None) -> str:
    """`95.0 % (88.8–97.8, n=100)`."""
    if value is None or not exists(value.value):
        return DASH
    low, high = (f"{100 * end:.1f}" if exists(end) else DASH for end in (value.low, value.high))
    return f"{percent(value.value)} ({low}–{high}, n={value.n:,})"


def number(value: float | None) -> str:
    """Three significant digits, whole from 100 on: 0.0612, 6.12, 61.2, 612, 6,120."""
    if value is None or not exists(value):
        return DASH
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    if digits > 8 or digits < -12:
        return f"{value:.2e}"
    return f"{value:,.{max(0, digits)}f}"


def p_value(value: float | None) -> str:
    """0.31, or 2.1e-09 from a thousandth down."""
    if value is None or not exists(value):
        return DASH
    if value == 0:
        return "< 1e-300"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def chance(value: float | None) -> str:
    """A p-value times the number of labels: as `p_value` below 1, as `number` from there on."""
    return number(value) if value is not None and exists(value) and value >= 1 else p_value(value)


def one_in(rate: float) -> str:
    """0.01 -> `1 in 100`, 4.8e-06 -> `1 in 210,000`, 0.4 -> `1 in 2.5`; two digits, at most `1 in 10⁹` and so on."""
    if not exists(rate) or rate <= 0:
        return DASH
    times = 1 / rate
    if times < 10:
        return f"1 in {times:.2g}"
    digits = 10 ** (math.floor(math.log10(times)) - 1)
    return f"1 in {round(times / digits) * digits:,}" if times < 1e9 else f"1 in {typeset(f'{times:.0e}')}"


def typeset(text: str) -> str:
    """`2.1e-09` -> `2.1 × 10⁻⁹`, `< 1e-300` -> `< 10⁻³⁰⁰`, anything else as it is."""
    mantissa, e, exponent = text.partition("e")
    if not e or not exponent.lstrip("+-").isdigit():
        return text
    power = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
    head, _, last = mantissa.rpartition(" ")
    return f"{head} {power}".lstrip() if last == "1" else f"{mantissa} × {power}"


def duration(seconds: float) -> str:
    """`48 s`, `3 min 20 s`, `2 h 50 min`."""
    if not exists(seconds):
        return DASH
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def compact(value: Any) -> str:
    """A hyperparameter as JSON, text without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def enumeration(items: list[str], *, most: int = 8, word: str = "and") -> str:
    """`1`, `1 and 5`, `1, 5 and 8`, `1, 5, 8 and 40 more`."""
    if not items:
        return "none"
    if len(items) > most:
        items = [*items[: most - 1], f"{len(items) - most + 1:,} more"]
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {word} {items[-1]}"
