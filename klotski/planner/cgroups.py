"""What the control groups of this process limit: memory, and CPU time.

A container's limits are those of such a group. Both versions of the hierarchy are read, and every group from the
process's own up to the root: each sets its own limit. Inside of a container the outer ones cannot be seen.
"""

from collections.abc import Iterator
from pathlib import Path

__all__ = ["cpu_quota", "group_memory"]

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
UNLIMITED = ("max", "-1")
MEMORY_FILES = {
    1: (["memory.limit_in_bytes"], "memory.usage_in_bytes"),
    2: (["memory.max", "memory.high"], "memory.current"),
}
"""The limits and the usage, by the version of the hierarchy."""


def group_memory(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> int | None:
    """Bytes that the control groups of this process leave it, page cache aside; None: they set no limit.

    Above `memory.high` the kernel slows a process down until it stands still, so that it limits as `memory.max` does.
    """
    left = []
    for version, group in groups_with("memory", groups, membership):
        limits, usage = MEMORY_FILES[version]
        taken = read(group / usage)
        granted = [value for value in (read(group / limit) for limit in limits) if value and value not in UNLIMITED]
        if taken is not None:
            left += [int(limit) - int(taken) + page_cache(group / "memory.stat") for limit in granted]
    return max(0, min(left)) if left else None


def cpu_quota(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> float | None:
    """CPUs' worth of time that the control groups of this process grant it; None: they set no limit."""
    granted = []
    for version, group in groups_with("cpu", groups, membership):
        if version == 1:
            quota, period = read(group / "cpu.cfs_quota_us"), read(group / "cpu.cfs_period_us")
        else:
            quota, period = (*(read(group / "cpu.max") or "max 1").split(), "100000")[:2]
        if quota and quota not in UNLIMITED and period:
            granted.append(int(quota) / int(period))
    return min(granted) if granted else None


def groups_with(controller: str, groups: Path, membership: Path) -> Iterator[tuple[int, Path]]:
    """The version of the hierarchy (1 or 2) and the folder of each group of this process that has a controller."""
    for line in (read(membership) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        version = 1 if controllers else 2
        if version == 1 and controller not in controllers.split(","):
            continue
        root = groups / controller if version == 1 else groups
        inner = root / path.lstrip("/")
        for group in (inner, *inner.parents):
            if group.is_relative_to(root):
                yield version, group


def page_cache(stat: Path) -> int:
    """Bytes of a control group that it would give back."""
    counts = dict(line.split(" ", 1) for line in (read(stat) or "").splitlines())
    return sum(int(counts.get(name, 0)) for name in ("inactive_file", "active_file"))


def read(file: Path) -> str | None:
    """The text of one of the kernel's files; None: there is none."""
    try:
        return file.read_text().strip()
    except OSError:
        return None
