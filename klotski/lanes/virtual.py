"""Lanes on virtual time: they run no work of their own, and take as long for it as they are told.

With them, whatever is written against lanes is its own simulator. Time passes where somebody waits for a
lane, and where the compute lane works; the same operations take the same time to the last digit.
"""

from collections.abc import Callable, Sequence

from klotski.core import Operation, Span
from klotski.lanes.base import Event, Lane, SpanSink
from klotski.lanes.threads import InlineLane

__all__ = ["VirtualClock", "VirtualComputeLane", "VirtualLane"]

LATELY = 1.0  # seconds over which a lane's load is the mean, roughly

Duration = Callable[[Operation], float]
"""Seconds that an operation takes, once it has begun."""


class VirtualClock:
    """Seconds since the run began, as far as it has come."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        """The time now."""
        return self._now

    def advance(self, to: float) -> None:
        """Let time pass up to a point; it never runs backwards."""
        self._now = max(self._now, to)


class _Ending:
    """An event whose time is known as soon as its operation was submitted."""

    def __init__(self, clock: VirtualClock, end: float) -> None:
        self.end = end
        self._clock = clock

    def is_done(self) -> bool:
        return self.end <= self._clock()

    def wait(self) -> None:
        self._clock.advance(self.end)


class VirtualLane(Lane):
    """Transfers: an operation begins when it is submitted, the one before has ended, and its events have come.

    `submit` returns at once; `run` is called there, for what it does beside taking time. `start`: seconds that an
    operation takes longer if the lane was at rest.
    """

    def __init__(self, name: str, sink: SpanSink, clock: VirtualClock, duration: Duration, start: float = 0.0) -> None:
        super().__init__(name, sink, clock)
        self._time = clock
        self._duration = duration
        self._start = start
        self._free = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether an operation is under way now."""
        return self._free > self._time()

    def submit(self, operation: Operation, run: Callable[[], object], after: Sequence[Event] = ()) -> Event:
        """Queue the operation; its event knows when it will have ended."""
        begin = max(self._free, self._time(), *(event.end for event in after if isinstance(event, _Ending)))
        run()
        self._free = begin + self._duration(operation) + (self._start if begin > self._free else 0.0)
        self._sink.span(Span(self.name, operation, begin, self._free))
        return _Ending(self._time, self._free)


class VirtualComputeLane(InlineLane):
    """The compute lane: as `InlineLane`, but each operation lets its time pass, and `between` seconds after it."""

    def __init__(
        self, name: str, sink: SpanSink, clock: VirtualClock, duration: Duration, between: float = 0.0
    ) -> None:
        super().__init__(name, sink, clock)
        self._time = clock
        self._duration = duration
        self._between = between
        self._ended = 0.0
        self.load = 0.0
        """The share of its time that the lane has worked of late."""

    def _run(self, operation: Operation, run: Callable[[], object]) -> None:
        begin = self._time()
        seconds = self._duration(operation)  # before `run`, which may take the batch to its next step
        run()
        self._time.advance(begin + seconds)
        self._sink.span(Span(self.name, operation, begin, self._time()))
        self._time.advance(self._time() + self._between)
        passed, self._ended = self._time() - self._ended, self._time()
        if passed:
            self.load += (seconds / passed - self.load) * min(1.0, passed / LATELY)
