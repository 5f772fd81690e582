"""Lanes on virtual time: they run no work of their own, and take as long for it as they are told.

With them, whatever is written against lanes is its own simulator. Time passes where somebody waits for a
lane, and where the compute lane works; the same operations take the same time to the last digit.
"""

from collections.abc import Callable, Sequence

from klotski.core import Operation, Span
from klotski.lanes.base import Event, Lane, SpanSink

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
        begin = latest(after, max(self._free, self._time()))
        run()
        self._free = begin + self._duration(operation) + (self._start if begin > self._free else 0.0)
        self._sink.span(Span(self.name, operation, begin, self._free))
        return _Ending(self._time, self._free)


class VirtualComputeLane(Lane):
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

    def submit(self, operation: Operation, run: Callable[[], object], after: Sequence[Event] = ()) -> Event:
        """Let the time until `after` have come pass, and that of the operation; returns a completed event."""
        now = self._time()
        begin = latest(after, now)
        if begin > now:
            self._time.advance(begin)
            self._sink.bubble(Span(self.name, operation, now, begin))
        end = begin + self._duration(operation)  # before `run`, which may take the batch to its next step
        run()
        self._sink.span(Span(self.name, operation, begin, end))
        self._time.advance(end + self._between)
        passed = end + self._between - self._ended
        if passed:
            self.load += ((end - begin) / passed - self.load) * min(1.0, passed / LATELY)
        self._ended = end + self._between
        return _Ending(self._time, end)


def latest(events: Sequence[Event], now: float) -> float:
    """When all of these events have come, if not before `now`."""
    for event in events:
        assert isinstance(event, _Ending), "virtual lanes wait for each other alone"
        now = max(now, event.end)
    return now
