"""The threads that torch computes with, which are the process's: a sweep's jobs share them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from klotski.planner import granted_cores
from klotski.schema import HwConfig
from klotski.units import parse_count

__all__ = ["computing_threads"]


@contextmanager
def computing_threads(hw: HwConfig) -> Iterator[None]:
    """Compute with `hw.threads` threads, and restore the number afterwards: the next job's `auto` means that number.

    `auto`: no more than there are cores granted, unless `OMP_NUM_THREADS` is set. Threads beyond a CPU quota use it up
    early in each period, and all of them stand still for the rest of it.
    """
    before = torch.get_num_threads()
    wanted = parse_count("hw.threads", hw.threads)
    if wanted is None:
        wanted = before if "OMP_NUM_THREADS" in os.environ else min(before, granted_cores())
    if wanted == before:  # torch is not told: it would start threads of another pool as well
        yield
        return
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)
