"""Any moment of a long run, shown at once and exactly, from a file that is only read forward.

Lines lie in the file nearly in the order in which what they tell of was over, but not quite: sums of a
sweep come at its end, and a lane may tell late. So the file is cut into segments, each of which knows when the
events in it were over; how things stood at a moment is then a checkpoint before which everything was over,
and of the segments behind it those that hold something that was over as well.

Bounded, however long the run: when there are too many checkpoints, every second one goes, and segments become
twice as long. Checkpoints are packed: as objects they would take ten times as much.
"""

import gc
import io
import pickle
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from monitor.events import Event, ends
from monitor.lane import Span
from monitor.source import read_events
from monitor.state import State

__all__ = ["Index", "gc_paused"]

LIMIT = 128  # checkpoints; one of five busy lanes takes 0.6 MB
FRACTION = 10  # segments from one checkpoint to the next

to_msgpack = msgspec.msgpack.Encoder()
to_spans = msgspec.msgpack.Decoder(list[Span])


@contextmanager
def gc_paused() -> Iterator[None]:
    """Python does not look for garbage: it would go through tens of thousands of spans again and again, for none."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Segment(NamedTuple):
    """Consecutive lines of the file."""

    begin: int
    end: int
    earliest: float
    """When the first of its events was over."""
    latest: float
    """When the last of its events, and of all before it, was over."""
    checkpoint: bytes | None
    """How things stood before it, packed."""


class Index:
    """Of a file of events. `apart`: events from one checkpoint to the next, as long as there are few."""

    def __init__(self, file: Path, apart: int) -> None:
        self._file = file
        self._length = max(1, apart // FRACTION)  # of a segment, in events
        self._segments: list[Segment] = []
        self._passed: tuple[int, State] | None = None  # the state before a segment, where the last look came by
        self._latest = 0.0
        self._open(0, pack(State()))

    def _open(self, position: int, checkpoint: bytes | None) -> None:
        """Begin a segment."""
        self._begin = self._position = position
        self._checkpoint = checkpoint
        self._earliest = inf
        self._count = 0

    def add(self, event: Event, position: int, state: State) -> None:
        """Take the file's next event. `position`: where its line ends; `state`: how things stand with it."""
        moment = ends(event)
        self._earliest = min(self._earliest, moment)
        self._latest = max(self._latest, moment)
        self._position = position
        self._count += 1
        if self._count == self._length:
            self._segments.append(self._last())
            self._open(position, pack(state) if len(self._segments) % FRACTION == 0 else None)
            if len(self._segments) == FRACTION * LIMIT:
                self._thin()

    @gc_paused()
    def at(self, moment: float) -> State:
        """How things stood at a moment."""
        segments = [*self._segments, self._last()]
        over = bisect_right(self._segments, moment, key=lambda segment: segment.latest)
        first, state = self._before(over, segments)
        for segment in segments[first:over]:
            for event in read_events(self._file, segment.begin, segment.end):
                state.apply(event)
        self._passed = over, state.fork()
        for segment in segments[over:]:
            if segment.earliest <= moment:
                for event in read_events(self._file, segment.begin, segment.end):
                    if ends(event) <= moment:
                        state.apply(event)
        state.now = moment
        return state

    def _before(self, over: int, segments: list[Segment]) -> tuple[int, State]:
        """The nearest segment, not behind that many, before which the state is known; and that state."""
        nearest = next(each for each in range(over, -1, -1) if segments[each].checkpoint)
        if self._passed and nearest <= self._passed[0] <= over:
            return self._passed[0], self._passed[1].fork()
        checkpoint = segments[nearest].checkpoint
        assert checkpoint is not None
        return nearest, unpack(checkpoint)

    def _last(self) -> Segment:
        """The lines behind all segments."""
        return Segment(self._begin, self._position, self._earliest, self._latest, self._checkpoint)

    def _thin(self) -> None:
        """Make segments twice as long, and checkpoints half as many."""
        pairs = zip(self._segments[::2], self._segments[1::2], strict=True)
        merged = [
            Segment(one.begin, two.end, min(one.earliest, two.earliest), two.latest, one.checkpoint)
            for one, two in pairs
        ]
        self._segments = [
            each if number % FRACTION == 0 else each._replace(checkpoint=None) for number, each in enumerate(merged)
        ]
        self._length *= 2
        self._passed = None


class Packer(pickle.Pickler):
    """Spans, which are most of a state, in msgpack: that is several times as fast."""

    def reducer_override(self, value: object) -> Any:
        """How to make a value again; NotImplemented: as pickle does."""
        if isinstance(value, deque) and value and isinstance(value[0], Span):
            return unpack_spans, (to_msgpack.encode(list(value)), value.maxlen)
        return NotImplemented


def unpack_spans(spans: bytes, maxlen: int | None) -> deque[Span]:
    """The spans of a lane."""
    return deque(to_spans.decode(spans), maxlen)


def pack(state: State) -> bytes:
    """A state in as little memory as is quickly made."""
    packed = io.BytesIO()
    Packer(packed, pickle.HIGHEST_PROTOCOL).dump(state)
    return zlib.compress(packed.getbuffer(), 1)


def unpack(packed: bytes) -> State:
    """The same state again."""
    state = pickle.loads(zlib.decompress(packed))
    assert isinstance(state, State)
    return state
