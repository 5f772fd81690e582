"""What the machine has. Each figure comes with its reason."""

import psutil

__all__ = ["free_memory"]

SHARE = 0.8  # of free memory; the rest is the interpreter's, torch's and the page cache's


def free_memory() -> tuple[int, str]:
    """Bytes of CPU memory that a run may take, and why so many."""
    available = psutil.virtual_memory().available
    return int(available * SHARE), f"{SHARE:.0%} of the {available / 1e9:.1f}GB that are free"
