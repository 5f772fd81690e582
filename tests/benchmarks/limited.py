"""Run a command with a hard limit on its memory, page cache included, from a cold cache.

    python -m tests.benchmarks.limited 3GiB COMMAND...

Needs root and the kernel's memory control group, version 1 or 2. Ends with the command's status
(137: it went over the limit).
"""

import os
import subprocess
import sys
from pathlib import Path

from klotski.units import parse_size

__all__ = ["run_limited"]

ROOT = Path("/sys/fs/cgroup")


def run_limited(limit: str, command: list[str]) -> int:
    """The exit status of a command that may take at most `limit` of memory."""
    nbytes = parse_size("limit", limit)
    is_first_version = (ROOT / "memory").is_dir()
    group = (ROOT / "memory" if is_first_version else ROOT) / f"klotski-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if is_first_version else "memory.max")).write_text(str(nbytes))
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("1")
        join = f'echo $$ > "{group}/cgroup.procs" && exec "$@"'
        return abs(subprocess.run(["sh", "-c", join, "sh", *command]).returncode)
    finally:
        group.rmdir()


if __name__ == "__main__":
    sys.exit(run_limited(sys.argv[1], sys.argv[2:]))
