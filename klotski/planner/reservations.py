"""Memory that runs on this machine have planned to take, so that runs that start together do not plan with the same.

A run takes its memory seconds after it has planned: until then it looks free to others. One run plans at a time, with
a lock, and leaves a record of the bytes that its process is going to have. Of that others leave free what the process
does not have yet. Records of processes that have ended are ignored.

Kept in the user's cache: runs of other users, and of containers with a cache of their own, are not known.
"""

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from filelock import FileLock, Timeout
from platformdirs import user_cache_path

__all__ = ["Outstanding", "one_at_a_time", "outstanding", "release", "reserve"]

logger = logging.getLogger(__name__)

SAME = 60.0  # seconds by which the begin of one process may seem to differ: the system's clock may have been set


class Outstanding(NamedTuple):
    """Bytes that another run's process is going to take, and whether its control groups are this process's."""

    nbytes: int
    in_same_group: bool


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait until no other run plans; until the end of the block none does."""
    file = folder() / f"memory-{socket.gethostname()}.lock"
    lock = FileLock(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        take(lock)
    except OSError as error:
        logger.warning("%s: %s; memory that other runs are about to take is not left to them", file, error.strerror)
        yield
        return
    try:
        yield
    finally:
        lock.release()


def take(lock: FileLock) -> None:
    """Acquire a lock, and say so if that takes a while."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.info("another run is planning its memory; this one plans next")
        lock.acquire()


def reserve(nbytes: int) -> None:
    """Leave a record of all CPU memory that this process is going to have, instead of an earlier one."""
    own = psutil.Process()
    records = [record for record in running() if record[0] != own.pid]
    write([*records, (own.pid, own.create_time(), nbytes)])


def release() -> None:
    """Remove the record of this process, if there is one: its run has ended."""
    own = os.getpid()
    if any(pid == own for pid, _, _ in running()):
        with one_at_a_time():
            write([record for record in running() if record[0] != own])


def outstanding() -> list[Outstanding]:
    """What each other run's process is going to take beside what it has."""
    found = []
    for pid, _, nbytes in running():
        with suppress(psutil.NoSuchProcess):
            left = nbytes - int(psutil.Process(pid).memory_info().rss)
            if pid != os.getpid() and left > 0:
                found.append(Outstanding(left, groups_of(pid) == groups_of(os.getpid())))
    return found


def running() -> list[tuple[int, float, int]]:
    """Process id, time of its begin and bytes of each record whose process is running."""
    try:
        records = [
            (int(pid), float(begin), int(nbytes)) for pid, begin, nbytes in json.loads(records_file().read_bytes())
        ]
    except (OSError, ValueError, TypeError):  # there are none, or they are damaged
        return []
    return [record for record in records if is_running(*record[:2])]


def is_running(pid: int, begin: float) -> bool:
    """Whether there still is the process that left a record, rather than none or a later one with its id."""
    try:
        return abs(psutil.Process(pid).create_time() - begin) < SAME
    except psutil.NoSuchProcess:
        return False


def write(records: list[tuple[int, float, int]]) -> None:
    """Replace all records at once: they are read without the lock."""
    draft = records_file().with_suffix(f".{os.getpid()}")
    with suppress(OSError):  # where the lock could not be opened either, and a warning was given
        draft.write_text(json.dumps(records))
        draft.replace(records_file())


def records_file() -> Path:
    """Where the records of this machine are: a home may be shared between machines."""
    return folder() / f"memory-{socket.gethostname()}.json"


def folder() -> Path:
    """The user's cache."""
    return user_cache_path("klotski")


def groups_of(pid: int) -> str | None:
    """The control groups of a process, as the kernel writes them; None where there are none."""
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return None
