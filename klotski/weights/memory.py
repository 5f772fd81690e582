"""Memory for slots: allocated once, on page boundaries, in huge pages where the machine has them.

Reads past the page cache land on page boundaries alone. Huge pages matter twice: a fresh page of
4 KiB costs a virtual machine 2 to 8 microseconds, so that touching a gigabyte for the first time
takes longer than reading it from disk; and the kernel pins the target of each read page by page.
"""

import mmap

import numpy as np
import torch

__all__ = ["PAGE", "allocate", "whole_pages"]

PAGE = 4096  # bytes; every device's sector size divides it


def allocate(nbytes: int) -> torch.Tensor:
    """Fresh memory [nbytes] of uint8 that begins on a page; given back when the tensor is gone."""
    if not nbytes:
        return torch.empty(0, dtype=torch.uint8)
    memory = mmap.mmap(-1, whole_pages(nbytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.from_numpy(np.frombuffer(memory, dtype=np.uint8))[:nbytes]


def whole_pages(nbytes: int) -> int:
    """Bytes of the pages that hold so many bytes."""
    return -(-nbytes // PAGE) * PAGE
