"""What the machine has. Each figure comes with its reason."""

import re
import resource
from pathlib import Path

import psutil
import pynvml

__all__ = ["find_gpus", "free_memory", "is_gpu", "peak_memory", "process_memory", "runtime_memory"]

STATUS = Path("/proc/self/status")
SHARE = 0.8  # of free memory; the rest is the page cache's and other programs'
VENDOR = r"(?:NVIDIA |Tesla )*"
FORM = r"(?:[- ](?:PCIE|SXM\d?|NVL|HBM\d\w?|\d+GB))*"  # of a card, and its memory; any other word is another card
GROWTH = 128 << 20  # bytes that torch's libraries take for themselves once they compute


def free_memory() -> tuple[int, str]:
    """Bytes of CPU memory that this process may take in all, and why so many."""
    available, grants = available_memory()
    return int(available * SHARE) + process_memory(), f"{SHARE:.0%} of the {available / 1e9:.1f}GB {grants}"


def available_memory() -> tuple[int, str]:
    """Bytes of CPU memory that nobody uses, and who says so."""
    available, granted = psutil.virtual_memory().available, group_memory()
    if granted is not None and granted < available:
        return granted, "that are free of what its control group may take"
    return available, "that are free"


def group_memory(groups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes that the control groups of this process leave it, page cache aside; None: they set no limit.

    A container's memory is such a group's: what the machine has beside it is not its own.
    """
    if not membership.exists():
        return None
    left = []
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        root, limit, usage = (groups, "memory.max", "memory.current")
        if "memory" in controllers.split(","):
            root, limit, usage = groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        elif controllers:
            continue
        inner = root / path.lstrip("/")
        for group in (inner, *inner.parents):  # each has its own limit; inside of a container some cannot be seen
            if group.is_relative_to(root) and (group / limit).exists() and (group / usage).exists():
                granted, taken = ((group / name).read_text().strip() for name in (limit, usage))
                if granted != "max":
                    left.append(int(granted) - int(taken) + page_cache(group / "memory.stat"))
    return max(0, min(left)) if left else None


def page_cache(stat: Path) -> int:
    """Bytes of a control group that it would give back."""
    if not stat.exists():
        return 0
    counts = dict(line.split(" ", 1) for line in stat.read_text().splitlines())
    return sum(int(counts.get(name, 0)) for name in ("inactive_file", "active_file"))


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


def peak_memory() -> int:
    """Bytes that the process has taken at most."""
    # Linux passes the peak that getrusage tells on to a program that a larger one starts.
    if STATUS.exists():
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(lines["VmHWM"].removesuffix("kB")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
