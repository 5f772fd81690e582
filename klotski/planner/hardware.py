"""What the machine has. Each figure comes with its reason."""

import resource

import psutil

__all__ = ["free_memory", "peak_memory", "runtime_memory"]

SHARE = 0.8  # of free memory; the rest is the page cache's and other programs'
GROWTH = 128 << 20  # bytes that torch's libraries take for themselves once they compute


def free_memory() -> tuple[int, str]:
    """Bytes of CPU memory that this process may take in all, and why so many."""
    available = psutil.virtual_memory().available
    own = psutil.Process().memory_info().rss
    return int(available * SHARE) + own, f"{SHARE:.0%} of the {available / 1e9:.1f}GB that are free"


def runtime_memory() -> int:
    """Bytes that the interpreter, its libraries and what was read of the workload take by themselves."""
    return int(psutil.Process().memory_info().rss) + GROWTH


def peak_memory() -> int:
    """Bytes that the process has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
