"""Reads blocks from files into slots.

Where the file's numbers are of the type that is computed with, bytes go from the file straight
into the slot; otherwise through a staging buffer of at most `STAGING` bytes and a cast. What a
read leaves in the page cache is dropped at once: memory that nobody granted is not ours to fill.
"""

import os
from pathlib import Path

import torch

from klotski.errors import CheckpointError
from klotski.weights.layout import BlockLayout, Segment

__all__ = ["Reader"]

STAGING = 4 << 20  # bytes; a multiple of every dtype's size


class Reader:
    """Open files of a checkpoint. Used by one lane at a time."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        self._staging = torch.empty(0, dtype=torch.uint8)

    def read(self, layout: BlockLayout, slot: torch.Tensor) -> None:
        """Fill a slot (uint8, at least `layout.slot_bytes`) with a block.

        Raises:
            CheckpointError: a file ended early or could not be read.
        """
        for segment in layout.segments:
            descriptor = self._descriptor(segment.file)
            try:
                if segment.stored == segment.wanted:
                    target = slot[segment.slot_offset : segment.slot_offset + segment.nbytes]
                    self._fill(descriptor, segment, segment.offset, target)
                else:
                    self._read_and_cast(descriptor, segment, slot)
                os.posix_fadvise(descriptor, segment.offset, segment.nbytes, os.POSIX_FADV_DONTNEED)
            except OSError as error:
                raise CheckpointError(f"{segment.file} could not be read: {error.strerror}") from error

    def close(self) -> None:
        """Close all files; may be called twice."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _descriptor(self, file: Path) -> int:
        if file not in self._descriptors:
            try:
                descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise CheckpointError(f"{file} could not be opened: {error.strerror}") from error
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead of our own making
            self._descriptors[file] = descriptor
        return self._descriptors[file]

    def _fill(self, descriptor: int, segment: Segment, offset: int, target: torch.Tensor) -> None:
        buffer = memoryview(target.numpy().data)
        done = 0
        while done < len(buffer):
            count = os.preadv(descriptor, [buffer[done:]], offset + done)
            if count == 0:
                raise CheckpointError(f"{segment.file} was truncated while it was read; fetch it again")
            done += count

    def _read_and_cast(self, descriptor: int, segment: Segment, slot: torch.Tensor) -> None:
        if not self._staging.numel():
            self._staging = torch.empty(STAGING, dtype=torch.uint8)
        elements = segment.nbytes // segment.stored.itemsize
        end = segment.slot_offset + elements * segment.wanted.itemsize
        target = slot[segment.slot_offset : end].view(segment.wanted)
        for done in range(0, segment.nbytes, STAGING):
            piece = self._staging[: min(STAGING, segment.nbytes - done)]
            self._fill(descriptor, segment, segment.offset + done, piece)
            first = done // segment.stored.itemsize
            target[first : first + piece.numel() // segment.stored.itemsize].copy_(piece.view(segment.stored))
