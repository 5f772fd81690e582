"""Lanes on virtual time: they run no work of their own, and take as long for it as they are told.

With them, whatever is written against lanes is its own simulator. Time passes where somebody waits for a
lane, and where the compute lane works; the same operations take the same time to the last digit.
"""

from collections import deque
from collections.abc import Callable, Sequence
from math import ceil, inf

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
    """An operation on a wire: `begin` and `end` are when it will have begun and ended, unless others go before it.

    `ready`: when it could begin; `start`: what it takes longer after a rest. `since`: it has the wire to itself from
    then on.
    """

    __slots__ = ("begin", "lane", "operation", "rank", "ready", "seconds", "since", "start")

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
        self.follow(free)

    def follow(self, free: float) -> None:
        """Take the wire once it is free."""
        self.begin = self.since = self.ready if self.ready > free else free
        self.end = self.begin + self.seconds + (self.start if self.ready > free else 0.0)

    def give_way(self, other: "_Carried") -> None:
        """Stop for another, and go on behind it."""
        self.since = other.end
        self.end += other.seconds


class VirtualWire:
    """What lanes share that go the same way: it carries one operation at a time.

    Of those that wait, a lane's of lower rank go first, and of one rank the first that was submitted. One that waits
    for its events holds up those behind it. An operation that goes ahead of others puts off their ends; what already
    waits for one of them on another wire keeps to the time that it was told. `piece`: seconds, after each of which what
    is under way lets one of lower rank go ahead.
    """

    def __init__(self, sink: SpanSink, clock: VirtualClock, piece: float = inf) -> None:
        self._sink = sink
        self._time = clock
        self._piece = piece
        self._waiting: deque[_Carried] = deque()  # in the order in which they will end; one is under way, or stopped
        self._free = 0.0  # when the last one of those that are not among them any more has ended

    @property
    def is_busy(self) -> bool:
        """Whether an operation is under way now."""
        self._settle(self._time.now)
        return bool(self._waiting) and self._waiting[0].begin <= self._time.now

    def carry(self, rank: int, lane: str, operation: Operation, ready: float, seconds: float, start: float) -> Event:
        """Queue an operation; its event knows when it will have ended, unless others go before it.

        `ready`: when it could begin; `start`: seconds that it takes longer if the wire was at rest.
        """
        waiting, now = self._waiting, self._time.now
        if waiting:
            self._settle(now)
        behind = []
        while waiting and waiting[-1].rank > rank and waiting[-1].begin > now:
            behind.append(waiting.pop())
        begun = waiting.pop() if waiting and waiting[-1].rank > rank else None
        free = waiting[-1].end if waiting else self._free
        if begun is not None and (gap := self._gap(begun, max(ready, free, now))) < begun.end:
            carried = _Carried(self._time, rank, lane, operation, ready, seconds, 0.0, gap)
            begun.give_way(carried)
            waiting += (carried, begun)
        else:
            if begun is not None:
                waiting.append(begun)
                free = begun.end
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

    def _gap(self, begun: _Carried, time: float) -> float:
        """When an operation that is under way next lets another go ahead, from some time on."""
        if time <= begun.since and begun.begin < begun.since:  # it has let one, and has not gone on yet
            return begun.since
        return begun.since + self._piece * max(1, ceil((time - begun.since) / self._piece))

    def _settle(self, now: float) -> None:
        """What has ended by now, has ended for good."""
        waiting = self._waiting
        while waiting and waiting[0].end <= now:
            first = waiting.popleft()
            self._free = first.end
            self._sink.span(Span(first.lane, first.operation, first.begin, first.end))


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
