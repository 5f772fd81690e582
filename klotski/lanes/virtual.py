"""Lanes on virtual time: they run no work of their own, and take as long for it as they are told.

With them, whatever is written against lanes is its own simulator. Time passes where somebody waits for a
lane, and where the compute lane works; the same operations take the same time to the last digit.
"""

from collections import deque
from collections.abc import Callable, Sequence
from math import inf

from klotski.core import Operation, Span
from klotski.lanes.base import Event, Lane, SpanSink

__all__ = ["ASLEEP", "VirtualClock", "VirtualComputeLane", "VirtualLane", "VirtualWire"]

ASLEEP = 4e-3  # seconds of waiting, after which processors and threads rest; measured: between 4 and 5 ms
LATELY = 1.0  # seconds over which a lane's load is the mean, roughly

Duration = Callable[[Operation], float]
"""Seconds that an operation takes, once it has begun."""


class VirtualClock:
    """Seconds since the run began, as far as it has come: `now`."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The time now."""
        return self.now

    def advance(self, to: float) -> None:
        """Let time pass up to a point; it never runs backwards."""
        if to > self.now:
            self.now = to


class _Ending:
    """An event whose time is known as soon as its operation was submitted."""

    __slots__ = ("_clock", "end")

    def __init__(self, clock: VirtualClock, end: float) -> None:
        self.end = end
        self._clock = clock

    def is_done(self) -> bool:
        return self.end <= self._clock.now

    def wait(self) -> None:
        self._clock.advance(self.end)


class _Carried(_Ending):
    """An operation that has not begun, on a wire that is free since `free`.

    `ready`: when it could; `start`: what it takes longer after a rest.
    """

    __slots__ = ("lane", "operation", "rank", "ready", "seconds", "start")

    def __init__(
        self,
        clock: VirtualClock,
        rank: int,
        lane: str,
        operation: Operation,
        ready: float,
        seconds: float,
        start: float,
        free: float,
    ) -> None:
        self._clock = clock
        self.rank = rank
        self.lane = lane
        self.operation = operation
        self.ready = ready
        self.seconds = seconds
        self.start = start
        self.end = ready + seconds + start if ready > free else free + seconds

    def follow(self, free: float) -> None:
        """Go behind another than before."""
        self.end = self.ready + self.seconds + self.start if self.ready > free else free + self.seconds


class VirtualWire:
    """What lanes share that go the same way: it carries one operation at a time.

    Of those that wait, a lane's of lower rank go first, and of one rank the first that was submitted. One that waits
    for its events holds up those behind it. An operation that goes ahead of others puts off their ends; what already
    waits for one of them on another wire keeps to the time that it was told.
    """

    def __init__(self, sink: SpanSink, clock: VirtualClock) -> None:
        self._sink = sink
        self._time = clock
        self._waiting: deque[_Carried] = deque()
        self._free = 0.0  # when the last one that has begun will have ended

    @property
    def is_busy(self) -> bool:
        """Whether an operation is under way now."""
        self._settle(self._time.now)
        return self._free > self._time.now

    def carry(self, rank: int, lane: str, operation: Operation, ready: float, seconds: float, start: float) -> Event:
        """Queue an operation; its event knows when it will have ended, unless others go before it.

        `ready`: when it could begin; `start`: seconds that it takes longer if the wire was at rest.
        """
        waiting = self._waiting
        if waiting:
            self._settle(self._time.now)
        behind = []
        while waiting and waiting[-1].rank > rank:
            behind.append(waiting.pop())
        free = waiting[-1].end if waiting else self._free
        carried = _Carried(self._time, rank, lane, operation, ready, seconds, start, free)
        waiting.append(carried)
        while behind:
            other = behind.pop()
            other.follow(waiting[-1].end)
            waiting.append(other)
        return carried

    def settle(self) -> None:
        """Let all that waits have its time."""
        self._settle(inf)

    def _settle(self, now: float) -> None:
        """What has begun by now, has begun for good."""
        waiting, free = self._waiting, self._free
        while waiting:
            first = waiting[0]
            begin = first.ready if first.ready > free else free
            if begin > now:
                return
            waiting.popleft()
            self._free = free = first.end
            self._sink.span(Span(first.lane, first.operation, begin, free))


class VirtualLane(Lane):
    """Transfers: an operation begins when it is submitted, the one before has ended, and its events have come.

    `submit` returns at once; `run` is called there, for what it does beside taking time. `start`: seconds that an
    operation takes longer if the lane was at rest. `wire`: shared with other lanes, of which those of lower `rank` go
    first.
    """

    def __init__(
        self,
        name: str,
        sink: SpanSink,
        clock: VirtualClock,
        duration: Duration,
        start: float = 0.0,
        wire: VirtualWire | None = None,
        rank: int = 0,
    ) -> None:
        super().__init__(name, sink, clock)
        self._time = clock
        self._duration = duration
        self._start = start
        self._wire = wire or VirtualWire(sink, clock)
        self._rank = rank

    @property
    def is_busy(self) -> bool:
        """Whether an operation is under way now, on this lane or one that it shares its wire with."""
        return self._wire.is_busy

    def submit(self, operation: Operation, run: Callable[[], object], after: Sequence[Event] = ()) -> Event:
        """Queue the operation; its event knows when it will have ended."""
        run()
        ready = latest(after, self._time.now)
        return self._wire.carry(self._rank, self.name, operation, ready, self._duration(operation), self._start)

    def settle(self) -> None:
        """Let all that waits have its time."""
        self._wire.settle()

    def close(self) -> None:
        """The same."""
        self.settle()


class VirtualComputeLane(Lane):
    """The compute lane: as `InlineLane`, but each operation lets its time pass, and `between` seconds after it.

    `wake`: seconds that an operation takes longer once the lane has waited for more than `ASLEEP`.
    """

    def __init__(
        self,
        name: str,
        sink: SpanSink,
        clock: VirtualClock,
        duration: Duration,
        between: float = 0.0,
        wake: float = 0.0,
    ) -> None:
        super().__init__(name, sink, clock)
        self._time = clock
        self._duration = duration
        self._between = between
        self._wake = wake
        self._ended = 0.0
        self.load = 0.0
        """The share of its time that the lane has worked of late."""

    def submit(self, operation: Operation, run: Callable[[], object], after: Sequence[Event] = ()) -> Event:
        """Let the time until `after` have come pass, and that of the operation; returns a completed event."""
        clock = self._time
        now = clock.now
        begin = latest(after, now)
        if begin > now:
            clock.now = begin
            self._sink.bubble(Span(self.name, operation, now, begin))
        end = begin + self._duration(operation)  # before `run`, which may take the batch to its next step
        if begin - now > ASLEEP:
            end += self._wake
        run()
        self._sink.span(Span(self.name, operation, begin, end))
        clock.now = free = end + self._between
        passed = free - self._ended
        if passed:
            worked = (end - begin) / passed
            self.load += (worked - self.load) * passed / LATELY if passed < LATELY else worked - self.load
        self._ended = free
        return _Ending(clock, end)


def latest(events: Sequence[Event], now: float) -> float:
    """When all of these events have come, if not before `now`."""
    for event in events:
        assert isinstance(event, _Ending), "virtual lanes wait for each other alone"
        if event.end > now:
            now = event.end
    return now
