"""How a block is read: in few large requests, straight into its slot.

Reads past the page cache begin and end on a page, in the file and in memory. A parameter's place
in its slot is chosen so that pages of the file fall onto pages of the slot; then one request
brings the ranges of several tensors that are neighbours in the file, and scatters them over the
slot. Only the pages in which a tensor begins or ends are shared with its neighbour: they go
through a small staging buffer, as do numbers that are not stored in the type that is computed
with, and tensors that lie in no such place.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from klotski.weights.memory import PAGE, whole_pages

__all__ = ["REQUEST", "Copy", "ReadRequest", "Segment", "cut_requests"]

REQUEST = 16 << 20  # bytes of the largest request; larger ones reach no more


class Segment(NamedTuple):
    """A contiguous range of a file that fills a range of a slot, where it may have another dtype."""

    file: Path
    offset: int
    nbytes: int
    stored: torch.dtype
    slot_offset: int
    wanted: torch.dtype

    @property
    def end(self) -> int:
        """Its end in the file."""
        return self.offset + self.nbytes

    @property
    def is_plain(self) -> bool:
        """Whether its bytes are wanted as they are."""
        return self.stored == self.wanted

    @property
    def is_direct(self) -> bool:
        """Whether pages of the file fall onto pages of the slot."""
        return self.is_plain and (self.offset - self.slot_offset) % PAGE == 0


class Copy(NamedTuple):
    """What is left to do after a request: `nbytes` from the staging buffer to the slot."""

    staging_offset: int
    nbytes: int
    slot_offset: int
    stored: torch.dtype
    wanted: torch.dtype


class Target(NamedTuple):
    """Where a run of pages goes: to this place of the slot, or of the staging buffer."""

    in_slot: bool
    offset: int
    nbytes: int


class ReadRequest(NamedTuple):
    """One read of whole pages from `offset` on; `needed`: bytes that must be there, before the file may end."""

    file: Path
    offset: int
    needed: int
    targets: tuple[Target, ...]
    copies: tuple[Copy, ...]

    @property
    def staged(self) -> int:
        """Bytes of the staging buffer that it fills."""
        return sum(target.nbytes for target in self.targets if not target.in_slot)


def cut_requests(segments: Iterable[Segment]) -> tuple[ReadRequest, ...]:
    """The requests that fill a slot with these segments."""
    return tuple(request for run in runs(each for each in segments if each.nbytes) for request in cut_run(run))


def runs(segments: Iterable[Segment]) -> Iterator[list[Segment]]:
    """Segments that are neighbours in a file; one whose numbers are converted stands alone."""
    run: list[Segment] = []
    for segment in sorted(segments, key=lambda segment: (segment.file, segment.offset)):
        if run and not (
            segment.is_plain and run[-1].is_plain and (run[-1].file, run[-1].end) == (segment.file, segment.offset)
        ):
            yield run
            run = []
        run.append(segment)
    if run:
        yield run


def cut_run(run: Sequence[Segment]) -> Iterator[ReadRequest]:
    """Requests of about the same size, at most `REQUEST`, for neighbouring segments."""
    begin, end = run[0].offset, run[-1].end
    if not run[0].is_plain:  # cut between numbers, wherever the pages are
        for start in range(begin, end, REQUEST):
            yield scatter(run, start, min(start + REQUEST, end))
        return
    first = begin - begin % PAGE
    count = max(1, -(-(end - first) // REQUEST))
    step = whole_pages(-(-(end - first) // count))
    for start in range(first, end, step):
        yield scatter(run, max(start, begin), min(start + step, end))


def scatter(run: Sequence[Segment], begin: int, end: int) -> ReadRequest:
    """The request for the bytes from `begin` to `end` of neighbouring segments."""
    first = begin - begin % PAGE
    targets: list[Target] = []
    copies: list[Copy] = []
    position, staged = first, 0  # in the file, and in the staging buffer
    for segment in run:
        start, stop = max(segment.offset, begin), min(segment.end, end)
        if start >= stop:
            continue
        low, high = stop, stop  # of its pages that go straight into the slot
        if segment.is_direct and whole_pages(start) < stop - stop % PAGE:
            low, high = whole_pages(start), stop - stop % PAGE
            if position < low:
                targets.append(Target(in_slot=False, offset=staged, nbytes=low - position))
            copies += staged_copies(segment, start, low, staged - position)
            staged += low - position
            targets.append(Target(in_slot=True, offset=segment.slot_offset + low - segment.offset, nbytes=high - low))
            position = high
            start = high
        copies += staged_copies(segment, start, stop, staged - position)
    if position < end:
        rest = whole_pages(end - position)
        targets.append(Target(in_slot=False, offset=staged, nbytes=rest))
    return ReadRequest(run[0].file, first, end - first, tuple(targets), tuple(copies))


def staged_copies(segment: Segment, start: int, stop: int, shift: int) -> list[Copy]:
    """The copy for a segment's bytes from `start` to `stop`, which lie `shift` further in staging than in the file."""
    if start >= stop:
        return []
    numbers = (start - segment.offset) // segment.stored.itemsize
    slot_offset = segment.slot_offset + (
        start - segment.offset if segment.is_plain else numbers * segment.wanted.itemsize
    )
    return [Copy(start + shift, stop - start, slot_offset, segment.stored, segment.wanted)]
