"""Reads blocks from files into slots.

Past the page cache: memory that nobody granted is not ours to fill, and the kernel's copy of a
file that is read once a sweep is of no use. Several requests are in flight, each by a thread: the
interpreter's lock is given up for as long as the kernel reads. Measured on one virtual disk into
huge pages, in GB/s: one thread 1.8 to 2.6, two or more 2.0 to 2.7, in requests of 1 to 32 MB alike,
for 2 to 10 % of a core; through the page cache 0.5 to 0.8.

Where a file system knows no such reads (tmpfs), they go through the page cache.
"""

import errno
import os
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import torch

from klotski.errors import CheckpointError
from klotski.openmp import roam
from klotski.weights.layout import BlockLayout
from klotski.weights.memory import PAGE, allocate
from klotski.weights.requests import Copy, ReadRequest

__all__ = ["IN_FLIGHT", "Reader", "Reading", "largest_staging"]

IN_FLIGHT = 1  # requests that the disk works on
PIECES = 1024  # that Linux scatters one read over, at most


class Reading:
    """A block on its way."""

    def __init__(self, requests: list[Future[None]]) -> None:
        self._requests = requests

    def wait(self) -> None:
        """Return when the block is there.

        Raises:
            CheckpointError: a file ended early or could not be read.
        """
        wait(self._requests)  # all of them: the slot is nobody's while one is still writing to it
        for request in self._requests:
            request.result()


class Reader:
    """Open files of a checkpoint, and the threads that read them.

    `staging`: bytes of each thread's staging buffer, `largest_staging` of all that will be read.
    """

    def __init__(self, staging: int) -> None:
        self._staging = staging
        self._descriptors: dict[Path, int] = {}
        self._buffers = threading.local()
        self._pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="klotski-read", initializer=roam)

    def start(self, layout: BlockLayout, slot: torch.Tensor) -> Reading:
        """Begin to fill a slot (uint8, on a page boundary, at least `layout.slot_bytes`) with a block.

        Blocks are read in the order in which they were started. Not safe to be called by two threads at once.

        Raises:
            CheckpointError: a file could not be opened.
        """
        for request in layout.requests:
            self._descriptor(request.file)
        memory: np.ndarray[tuple[int], np.dtype[np.uint8]] = slot.numpy()
        return Reading([self._pool.submit(self._read, request, memory) for request in layout.requests])

    def read(self, layout: BlockLayout, slot: torch.Tensor) -> None:
        """Fill a slot with a block; see `start`."""
        self.start(layout, slot).wait()

    def close(self) -> None:
        """Close all files and end the threads; may be called twice."""
        self._pool.shutdown(cancel_futures=True)
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _descriptor(self, file: Path) -> int:
        if file not in self._descriptors:
            try:
                self._descriptors[file] = open_past_cache(file)
            except OSError as error:
                raise CheckpointError(f"{file} could not be opened: {error.strerror}") from error
        return self._descriptors[file]

    def _read(self, request: ReadRequest, slot: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> None:
        if not hasattr(self._buffers, "staging"):
            self._buffers.staging = allocate(self._staging).numpy()
        staging: np.ndarray[tuple[int], np.dtype[np.uint8]] = self._buffers.staging
        pages = [
            (slot if target.in_slot else staging)[target.offset : target.offset + target.nbytes].data
            for target in request.targets
        ]
        try:
            fill(self._descriptors[request.file], pages, request)
        except OSError as error:
            raise CheckpointError(f"{request.file} could not be read: {error.strerror}") from error
        for copy in request.copies:
            copy_staged(copy, staging, slot)


def largest_staging(layouts: Iterable[BlockLayout]) -> int:
    """Bytes of the staging buffer that these blocks need."""
    return max((request.staged for layout in layouts for request in layout.requests), default=0)


def open_past_cache(file: Path) -> int:
    """A descriptor that reads past the page cache, where the file system can."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        return os.open(file, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.open(file, flags)


def fill(descriptor: int, pages: list[memoryview], request: ReadRequest) -> None:
    """Read pages until the bytes that are needed are there."""
    done = 0
    while done < request.needed:
        count = os.preadv(descriptor, pages[:PIECES], request.offset + done)
        done += count
        if done < request.needed and (count == 0 or count % PAGE):  # the file's last page is short
            raise CheckpointError(f"{request.file} was truncated while it was read; fetch it again")
        while pages and count >= len(pages[0]):
            count -= len(pages.pop(0))
        if pages:
            pages[0] = pages[0][count:]


def copy_staged(
    copy: Copy,
    staging: "np.ndarray[tuple[int], np.dtype[np.uint8]]",
    slot: "np.ndarray[tuple[int], np.dtype[np.uint8]]",
) -> None:
    """Move bytes or numbers from the staging buffer to their place."""
    data = staging[copy.staging_offset : copy.staging_offset + copy.nbytes]
    if copy.stored == copy.wanted:
        # numpy copies on this thread alone, and without the interpreter's lock.
        np.copyto(slot[copy.slot_offset : copy.slot_offset + copy.nbytes], data)
        return
    # A file's numbers may begin anywhere; torch wants them where a number of their type may lie.
    aligned = data if data.ctypes.data % copy.stored.itemsize == 0 else data.copy()
    numbers = torch.frombuffer(aligned, dtype=copy.stored)
    end = copy.slot_offset + numbers.numel() * copy.wanted.itemsize
    torch.from_numpy(slot)[copy.slot_offset : end].view(copy.wanted).copy_(numbers)
