"""What the machine has. Each figure comes with its reason."""

import os
import re
import resource
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pynvml

from klotski.openmp import GIVEN
from klotski.planner.cgroups import cpu_quota, group_memory
from klotski.planner.reservations import Outstanding, outstanding

__all__ = [
    "find_gpus",
    "free_memory",
    "given_cores",
    "granted_cores",
    "is_gpu",
    "peak_memory",
    "process_budget",
    "process_memory",
    "reset_peak_memory",
    "runtime_memory",
]

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
SHARE = 0.8  # of free memory; the rest is the page cache's and other programs'
VENDOR = r"(?:NVIDIA |Tesla )*"
FORM = r"(?:[- ](?:PCIE|SXM\d?|NVL|HBM\d\w?|\d+GB))*"  # of a card, and its memory; any other word is another card
GROWTH = 128 << 20  # bytes that torch's libraries take for themselves once they compute


def process_budget() -> tuple[int, str]:
    """Bytes of CPU memory that this process may take in all, and what limits them."""
    nbytes, reason = free_memory()
    return nbytes + process_memory(), reason


def free_memory() -> tuple[int, str]:
    """Bytes of CPU memory that this process may take beside what it has, and what limits them."""
    nbytes, whose = available_memory()
    return int(SHARE * nbytes), f"{100 * SHARE:.0f} % of the {nbytes / 1e9:.1f} GB {whose}"


def available_memory() -> tuple[int, str]:
    """Bytes of CPU memory that the narrowest limit leaves, and which one that is."""
    nbytes, whose = min(memory_limits())
    return max(0, nbytes), whose


def memory_limits() -> Iterator[tuple[int, str]]:
    """For each limit of CPU memory, bytes that this process may still take and whose limit it is."""
    others = outstanding()
    yield beside(others, psutil.virtual_memory().available, "available")
    if (granted := group_memory()) is not None:
        neighbours = [other for other in others if other.in_same_group]
        yield beside(neighbours, granted, "left by the memory limit of its control group")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        mapped = int(psutil.Process().memory_info().vms)
        yield limit - mapped, "left by `ulimit -v`, the limit of its address space"


def beside(others: Sequence[Outstanding], nbytes: int, whose: str) -> tuple[int, str]:
    """The bytes that other runs leave of `nbytes`, and the reason in words."""
    reserved = sum(other.nbytes for other in others)
    return nbytes - reserved, whose + f" beside {reserved / 1e9:.1f} GB that other runs have reserved" * bool(reserved)


def granted_cores() -> int:
    """Whole cores that this process may keep busy: those it may run on, limited by its CPU quota."""
    cores = given_cores()
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def given_cores() -> int:
    """Cores that this process may run on."""
    return len(GIVEN) if GIVEN is not None else os.cpu_count() or 1


def find_gpus() -> list[tuple[str, int]]:
    """Name and bytes of memory of each NVIDIA GPU; none where there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    gpus = [(str(pynvml.nvmlDeviceGetName(each)), int(pynvml.nvmlDeviceGetMemoryInfo(each).total)) for each in handles]
    pynvml.nvmlShutdown()
    return gpus


def is_gpu(name: str, found: str) -> bool:
    """Whether a GPU that its driver calls `found` is one of this name: `A100` is `NVIDIA A100-SXM4-40GB`."""
    wanted = re.sub(VENDOR, "", name, count=1, flags=re.IGNORECASE)
    return re.fullmatch(VENDOR + re.escape(wanted) + FORM, found, re.IGNORECASE) is not None


def runtime_memory() -> int:
    """Bytes that the interpreter, its libraries and what was read of the workload take by themselves."""
    return process_memory() + GROWTH


def process_memory() -> int:
    """Bytes that the process takes now."""
    return int(psutil.Process().memory_info().rss)


def reset_peak_memory() -> None:
    """Forget what the process has taken at most, as an earlier job of a sweep; where only Linux can, and may."""
    with suppress(OSError):
        CLEAR.write_text("5")  # proc(5): resets VmHWM


def peak_memory() -> int:
    """Bytes that the process has taken at most since `reset_peak_memory`."""
    # Linux passes the peak that getrusage tells on to a program that a larger one starts.
    if STATUS.exists():
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(lines["VmHWM"].removesuffix("kB")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
