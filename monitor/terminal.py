"""What the terminal is like, and whether it is still there."""

import os
import select
import sys
from contextlib import suppress

__all__ = ["has_hung_up", "is_light", "step_back"]


def step_back() -> None:
    """From now on the run's threads come first, where both want a core."""
    with suppress(OSError):
        os.nice(19)


def is_light(said: str) -> bool:
    """Whether a terminal's background is light, by what many say of it: `foreground;background`, of 16 colours."""
    return said.rpartition(";")[2] in ("7", "15")


def has_hung_up() -> bool:
    """Whether the terminal is gone, which nobody might ever say otherwise."""
    terminal = select.poll()
    terminal.register(sys.__stdin__.fileno() if sys.__stdin__ else 0, 0)
    return bool(terminal.poll(0))
