"""The contract of a lane.

A lane takes operations in order and works through them in that order. An operation begins when
the lane has finished the one before and every event that it depends on has come; it ends by
completing the event that `submit` returned. Lanes know nothing of weights or experts: what an
operation does is a closure, what it means is an `Operation` that goes into the span.

What a caller may rely on:
- `submit` may return before the operation has begun; only the event says that it has ended.
- Operations of one lane never overtake each other, and their spans never overlap.
- An operation that raises completes its event with the exception, which `Event.wait` raises, and
  the lane begins none after it.
- `close` waits for operations in progress, ends the others with `LaneClosedError`, and may be
  called twice.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from klotski.core import Operation, Span

__all__ = ["PIECE", "Clock", "Event", "Lane", "Pending", "SpanSink"]

PIECE = 32 << 20
"""Bytes of a copy into a device, after which one of another lane that goes the same way has its turn: 1.3 ms over PCIe
4, where a block takes up to 14."""

Clock = Callable[[], float]
"""Seconds since the run's clock started."""


class Event(Protocol):
    """The completion of an operation."""

    def is_done(self) -> bool:
        """Whether the operation has ended; never blocks."""

    def wait(self) -> None:
        """Return when the operation has ended; raise what it raised."""


@runtime_checkable
class Pending(Protocol):
    """An operation that has been begun, and goes on elsewhere."""

    def wait(self) -> None:
        """Return when it has ended; raise what it raised."""


class SpanSink(Protocol):
    """Where spans and bubbles go. Called from the lanes' own threads."""

    def span(self, span: Span) -> None:
        """Take a finished operation."""

    def bubble(self, span: Span) -> None:
        """Take a time in which the compute lane waited; its operation is the one that waited."""


class Lane(ABC):
    """Works through operations in order; see the module's contract."""

    def __init__(self, name: str, sink: SpanSink, clock: Clock = time.monotonic) -> None:
        self.name = name
        self._sink = sink
        self._clock = clock

    @abstractmethod
    def submit(self, operation: Operation, run: Callable[[], object], after: Sequence[Event] = ()) -> Event:
        """Queue an operation that begins after `after`; returns its completion."""

    @property
    def waiting(self) -> tuple[int, int]:
        """Operations that were submitted and have not ended, and their bytes; may be asked by any thread."""
        return 0, 0

    def close(self) -> None:  # noqa: B027  (a lane without a thread has nothing to stop)
        """Stop working; operations not yet begun are dropped."""

    def _run(self, operation: Operation, run: Callable[[], object]) -> None:
        begin = self._clock()
        run()
        self._sink.span(Span(self.name, operation, begin, self._clock()))
