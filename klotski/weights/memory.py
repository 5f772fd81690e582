"""Memory for slots: allocated once, on page boundaries, in huge pages where the machine has them.

Reads past the page cache land on page boundaries alone. Huge pages matter twice: a fresh page of
4 KiB costs a virtual machine 2 to 8 microseconds, so that touching a gigabyte for the first time
takes longer than reading it from disk; and the kernel pins the target of each read page by page.
"""

import ctypes
import mmap
import weakref
from collections.abc import Callable

import numpy as np
import torch

__all__ = ["PAGE", "allocate", "keep_small_memory", "return_free_memory", "whole_pages"]

PAGE = 4096  # bytes; every device's sector size divides it
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST_KEPT = 32 << 20  # bytes; more than any result of a batch's turn, and the most that glibc allows
MOST_KEPT = 64 << 20  # bytes at the end of the heap


def allocate(nbytes: int, before_return: Callable[[int], object] | None = None) -> torch.Tensor:
    """Fresh memory [nbytes] of uint8 that begins on a page; given back when the tensor is gone.

    `before_return` is called with its address then, unless the process ends first.
    """
    if not nbytes:
        return torch.empty(0, dtype=torch.uint8)
    memory = mmap.mmap(-1, whole_pages(nbytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    numbers = np.frombuffer(memory, dtype=np.uint8)
    if before_return is not None:
        weakref.finalize(numbers, before_return, numbers.ctypes.data).atexit = False
    return torch.from_numpy(numbers)[:nbytes]


def keep_small_memory() -> None:
    """Let the C library keep what torch's operations give back, for the next ones.

    It would be fresh memory each time: results of 4 MB took twice as long as the products that made
    them. What lies free between pieces in use is counted in the plan, and given back after sweeps that
    read prompts and where memory runs short (`return_free_memory`). Other C libraries than glibc have
    neither these limits nor, perhaps, the trouble.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, MOST_KEPT)


def return_free_memory() -> None:
    """Give back to the system what the C library has kept but nobody uses.

    glibc cuts a result's memory out of a hole only where the hole is larger than the result was, so
    that holes of the same size pile up from sweep to sweep: 920 MB of heap for 250 in use after four.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def whole_pages(nbytes: int) -> int:
    """Bytes of the pages that hold so many bytes."""
    return -(-nbytes // PAGE) * PAGE
