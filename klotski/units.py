"""Sizes, rates and counts as people write them."""

import re
from pathlib import Path

from klotski.errors import ConfigError

__all__ = [
    "format_flops",
    "format_seconds",
    "format_size",
    "parse_count",
    "parse_rate",
    "parse_seconds",
    "parse_size",
    "user_path",
]

UNITS = {"": 1, "b": 1} | {
    prefix + unit: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for unit, base in (("", 1024), ("b", 1000), ("ib", 1024))
}
FLOPS = {prefix + "flop": 1000**power for power, prefix in enumerate(("", "k", "m", "g", "t", "p"))}
TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
BITS = re.compile(r"b(?:its?)?(?:ps|/s)$")  # a small b, as people write bits
BARE = 1_000_000  # bytes: a smaller number without a unit is one of gigabytes, whose unit was forgotten
RATES = {"B": ({unit: UNITS[unit] for unit in UNITS if unit.endswith("b")}, "2GB/s"), "FLOP": (FLOPS, "400GFLOP/s")}


def user_path(text: str) -> Path:
    """A path as a user writes it, `~` at its begin being a home; of a user that does not exist it is a name."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def parse_size(key: str, text: str, least: int = 1) -> int | None:
    """Bytes of a size as people write it (`2.5GB`, `512MiB`, `1000000`); None for `auto`.

    GB is 10^9 bytes; GiB and a bare G are 2^30.

    Raises:
        ConfigError: it is not a size, below `least` (0 or 1), or a small number without a unit.
    """
    if text.strip().lower() == "auto":
        return None
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]*)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in UNITS:
        raise ConfigError(f"{key}={text} is not a size; write it like 2.5GB, 512MiB or auto")
    size: int = round(float(match[1]) * UNITS[match[2]])
    if size < least:
        raise ConfigError(f"{key}={text} must be above zero")
    if not match[2] and 0 < size < BARE:
        raise ConfigError(f"{key}={text} has no unit; write it like {text.strip()}GB")
    return size


def parse_rate(key: str, text: str, unit: str) -> float | None:
    """Units (`B`, `FLOP`) in a second, as people write them (`2GB/s`, `400GFLOP/s`); None for `auto`.

    Raises:
        ConfigError: it is not a rate in this unit, or not above zero.
    """
    if text.strip().lower() == "auto":
        return None
    units, example = RATES[unit]
    if unit == "B" and BITS.search(text.strip()):
        raise ConfigError(f"{key}={text} is in bits; write bytes, eight times less, like {example}")
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]*)?)\s*([a-z]+)/s", text.strip().lower())
    if match is None or match[2] not in units:
        raise ConfigError(f"{key}={text} is not a rate; write it like {example} or auto")
    rate: float = float(match[1]) * units[match[2]]
    if rate < 1:
        raise ConfigError(f"{key}={text} must be above zero")
    return rate


def parse_seconds(key: str, text: str) -> float | None:
    """A short time as people write it (`6ms`, `50us`), in seconds; None for `auto`.

    Raises:
        ConfigError: it is not a time, or not above zero.
    """
    if text.strip().lower() == "auto":
        return None
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]*)?)\s*([a-z]+)", text.strip().lower())
    if match is None or match[2] not in TIMES:
        raise ConfigError(f"{key}={text} is not a time; write it like 6ms, 50us or auto")
    seconds: float = float(match[1]) * TIMES[match[2]]
    if not seconds:
        raise ConfigError(f"{key}={text} must be above zero")
    return seconds


def parse_count(key: str, text: str) -> int | None:
    """A whole number of at least 1; None for `auto`.

    Raises:
        ConfigError: it is neither.
    """
    if text.strip().lower() == "auto":
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text.strip()) or int(text) < 1:
        raise ConfigError(f"{key}={text} must be a whole number of at least 1, or auto")
    return int(text)


def format_size(nbytes: float) -> str:
    """A size with three digits, in units that `parse_size` reads back: 12.3MB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.3g}{unit}" if nbytes < 999.5 * scale else f"{nbytes / scale:.0f}{unit}"
    return f"{nbytes:.0f}B"


def format_flops(rate: float) -> str:
    """Operations a second with three digits: 400GFLOP/s."""
    for unit, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if rate >= scale:
            return f"{rate / scale:.3g}{unit}FLOP/s" if rate < 999.5 * scale else f"{rate / scale:.0f}{unit}FLOP/s"
    return f"{rate:.0f}FLOP/s"


def format_seconds(seconds: float) -> str:
    """A time with three digits, in the unit that people would say: 4.97 s, 12.2 min, 35.5 h."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
