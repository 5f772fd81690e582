"""Python's search for garbage that refers to itself, and when to leave it out."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

__all__ = ["collect_earlier_runs", "uncollected"]

_runs = count()  # of this process


def collect_earlier_runs() -> None:
    """Take back what a sweep's job before this one held in circles: its slots, above all, in either tier.

    A process's first run, which has nothing to find, is spared the half second.
    """
    if next(_runs):
        gc.collect()


@contextmanager
def uncollected() -> Iterator[None]:
    """Leave out the search for garbage that refers to itself: a quarter of a load's or a simulation's time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
