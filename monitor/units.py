"""Numbers as people say them."""

__all__ = ["brief", "flops", "plural", "size", "when"]

PREFIXES = ("", "k", "M", "G", "T", "P")


def size(nbytes: float) -> str:
    """Bytes."""
    return f"{scaled(nbytes)}B"


def flops(operations: float) -> str:
    """Operations of arithmetic."""
    return f"{scaled(operations)}FLOP"


def scaled(number: float) -> str:
    """A number with three digits and a prefix."""
    prefix = 0
    while abs(number) >= 1000 and prefix < len(PREFIXES) - 1:
        number, prefix = number / 1000, prefix + 1
    return f"{number:.3g}{PREFIXES[prefix]}"


def when(seconds: float) -> str:
    """Seconds."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"


def brief(seconds: float) -> str:
    """Seconds that may be small parts of one."""
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def plural(count: float, what: str) -> str:
    """So many of something, which has an ordinary plural."""
    return f"{count:.0f} {what}" + ("" if count == 1 else "es" if what.endswith("ch") else "s")
