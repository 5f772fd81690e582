"""Lanes on a GPU: streams, with events that the host need not wait for.

The host runs ahead of the device: `submit` queues an operation's kernels or copies on the lane's
stream, behind the events that it depends on, and returns. What depends on the host (a disk read)
is waited for by a thread of the lane, so that the sweep goes on meanwhile.

Times are the device's own: every operation leaves timing events, which are told as spans once they
have come, in seconds of the run's clock.

Not measured on a GPU yet; `make test-gpu` does it. Without one it is executed on a card of threads.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import torch

from klotski.core import Operation, Span
from klotski.lanes.base import Clock, Event, Lane, SpanSink
from klotski.lanes.threads import LaneClosedError

__all__ = ["CudaClock", "CudaComputeLane", "CudaLane", "Landing", "bring", "pin", "to_device"]

LONG = 10.0  # seconds, of which a driver's steps are a microsecond
WAITED = 2e-6  # seconds between two timing events with nothing between them, and less


class CudaClock:
    """The run's clock, as a device's timing events tell it.

    A driver says in single precision how many milliseconds there are between two of them: after an hour, in steps of a
    quarter of one. So what is told is told from an event that came a short while before.
    """

    def __init__(self, clock: Clock, device: torch.device) -> None:
        self.device = device
        origin = self.mark(torch.Stream(device))
        origin.synchronize()
        self._origin = origin, clock()  # replaced as one: the lanes' threads ask, too

    def mark(self, stream: torch.Stream) -> torch.Event:
        """An event that comes when a stream has done all that was queued on it."""
        event = torch.Event(self.device, enable_timing=True)
        event.record(stream)
        return event

    def time(self, event: torch.Event) -> float:
        """Seconds of the run's clock at which an event came."""
        origin, began = self._origin
        since = 1e-3 * origin.elapsed_time(event)
        if since > LONG:
            self._origin = event, began + since
        return float(began + since)


class _Queued:
    """The completion of an operation that a stream will come to, once it has been queued there."""

    def __init__(self) -> None:
        self._flag = threading.Event()
        self._end: torch.Event | None = None
        self._error: BaseException | None = None

    @property
    def is_queued(self) -> bool:
        """Whether a stream may be told to wait for it."""
        return self._flag.is_set()

    def is_done(self) -> bool:
        return self._flag.is_set() and (self._end is None or self._end.query())

    def wait(self) -> None:
        self.wait_on_host().synchronize()

    def wait_on_host(self) -> torch.Event:
        """The event, once it has been queued; raise what the operation raised."""
        self._flag.wait()
        if self._error is not None:
            raise self._error
        assert self._end is not None
        return self._end

    def complete(self, end: torch.Event | None, error: BaseException | None = None) -> None:
        self._end, self._error = end, error
        self._flag.set()


class _Told(NamedTuple):
    """What will be told of an operation: when it could have begun, when it did, and when it ended."""

    operation: Operation
    before: torch.Event
    begin: torch.Event
    end: torch.Event


class _Stream:
    """A stream with a memory of what was queued on it."""

    def __init__(self, name: str, sink: SpanSink, clock: CudaClock) -> None:
        self._name = name
        self._sink = sink
        self._clock = clock
        self._stream = torch.Stream(clock.device)
        self._untold: deque[_Told] = deque()
        self._ended = 0.0

    def queue(self, operation: Operation, run: Callable[[], object], after: Sequence[Event]) -> torch.Event:
        """Queue an operation behind events, of which those of the host are waited for here; returns its end."""
        self.tell()
        before = self._clock.mark(self._stream)
        for event in after:
            if isinstance(event, _Queued):
                self._stream.wait_event(event.wait_on_host())
            else:
                event.wait()
        begin = self._clock.mark(self._stream)
        with self._stream:
            run()
        end = self._clock.mark(self._stream)
        self._untold.append(_Told(operation, before, begin, end))
        return end

    def tell(self, *, bubbles: bool = False) -> None:
        """Pass on what has ended."""
        while self._untold and self._untold[0].end.query():
            operation, before, begin, end = self._untold.popleft()
            at_rest, began, ended = (self._clock.time(event) for event in (before, begin, end))
            began = max(began, self._ended)
            if bubbles and began - at_rest > WAITED:
                self._sink.bubble(Span(self._name, operation, max(at_rest, self._ended), began))
            self._ended = max(began, ended)
            self._sink.span(Span(self._name, operation, began, self._ended))

    @property
    def under_way(self) -> list[Operation]:
        """What was queued and has not ended; may be asked by any thread."""
        return [told.operation for told in list(self._untold) if not told.end.query()]

    def finish(self) -> None:
        """Wait for all that was queued."""
        self._stream.synchronize()


class CudaLane(Lane):
    """Copies between CPU memory and a device, on a stream of their own."""

    def __init__(self, name: str, sink: SpanSink, clock: Clock, device: CudaClock) -> None:
        super().__init__(name, sink, clock)
        self._stream = _Stream(name, sink, device)
        self._lock = threading.Lock()
        self._waiting: queue.SimpleQueue[tuple[Operation, Callable[[], object], Sequence[Event], _Queued] | None]
        self._waiting = queue.SimpleQueue()
        self._behind = 0  # operations that the thread has not queued yet
        self._behind_bytes = 0
        self._error: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=f"klotski-{name}", daemon=True)
        self._thread.start()

    def submit(self, operation: Operation, run: Callable[[], object], after: Sequence[Event] = ()) -> Event:
        """Queue the operation, here if the host need not wait for anything, or else on the lane's thread."""
        assert not self._closing, f"the {self.name} lane was closed before {operation} was submitted"
        queued = _Queued()
        with self._lock:
            if self._behind or not all(is_ready(event) for event in after):
                self._behind += 1
                self._behind_bytes += operation.nbytes
                self._waiting.put((operation, run, after, queued))
            else:
                self._begin(operation, run, after, queued)
        return queued

    @property
    def waiting(self) -> tuple[int, int]:
        """Operations and bytes that have not ended: with the thread, and on the stream."""
        under_way = self._stream.under_way  # without the lock, which is the run's
        return self._behind + len(under_way), self._behind_bytes + sum(each.nbytes for each in under_way)

    def close(self) -> None:
        """Let what is queued end, drop the rest, and join the thread."""
        self._closing = True
        self._waiting.put(None)
        self._thread.join()
        self._stream.finish()
        self._stream.tell()

    def _begin(self, operation: Operation, run: Callable[[], object], after: Sequence[Event], queued: _Queued) -> None:
        end = None
        if self._closing and self._error is None:
            self._error = LaneClosedError(f"the {self.name} lane was closed")
        try:
            if self._error is None:
                end = self._stream.queue(operation, run, after)
        except BaseException as error:
            self._error = error
            if not isinstance(error, Exception):  # Ctrl-C, on the thread that submits: not the lane's to keep
                queued.complete(None, error)
                raise
        queued.complete(end, self._error)

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            self._begin(*item)
            with self._lock:
                self._behind -= 1
                self._behind_bytes -= item[0].nbytes


class CudaComputeLane(Lane):
    """Arithmetic on a stream, queued by the caller's thread: coroutines have to be resumed on the one that made them.

    Waits of the stream for a block are told as bubbles.
    """

    def __init__(self, name: str, sink: SpanSink, clock: Clock, device: CudaClock) -> None:
        super().__init__(name, sink, clock)
        self._stream = _Stream(name, sink, device)

    def submit(self, operation: Operation, run: Callable[[], object], after: Sequence[Event] = ()) -> Event:
        """Queue the operation's kernels; its closure has run when this returns."""
        queued = _Queued()
        self._stream.tell(bubbles=True)
        queued.complete(self._stream.queue(operation, run, after))
        return queued

    def close(self) -> None:
        """Wait for the device, and tell the last spans."""
        self._stream.finish()
        self._stream.tell(bubbles=True)


class Landing:
    """Numbers on their way from a device to the host; there is nothing to wait for where they are there already."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self._event: torch.Event | None = None
        self._here = numbers
        if numbers.device.type != "cpu":
            self._here = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._here.copy_(numbers, non_blocking=True)
            self._event = torch.Event(numbers.device)
            self._event.record()

    @property
    def is_here(self) -> bool:
        """Whether they have come; never waits."""
        return self._event is None or self._event.query()

    def numbers(self) -> torch.Tensor:
        """The numbers, in CPU memory, once they have come."""
        if self._event is not None:
            self._event.synchronize()
        return self._here


def to_device(numbers: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A few numbers of the host where a device can use them, in the order of the lane that this is called on."""
    if device.type == "cpu":
        return numbers
    return numbers.pin_memory().to(device, non_blocking=True)


def bring(numbers: torch.Tensor, target: torch.Tensor) -> None:
    """Numbers of the host into memory of a device, in the order of the lane that this is called on."""
    if target.device.type == "cpu":
        target.copy_(numbers)
    else:
        target.copy_(numbers.pin_memory(), non_blocking=True)


def is_ready(event: Event) -> bool:
    """Whether a stream can be told to wait for an event without the host waiting first."""
    return event.is_queued if isinstance(event, _Queued) else event.is_done()


def pin(memory: torch.Tensor) -> Callable[[], object] | None:
    """Register CPU memory with the driver, so that copies from it are asynchronous and at the link's speed.

    Returns what unregisters it, which has to be called before the memory is given back: until then the system does not
    get it. None where the driver refuses: copies then go through the driver's own buffer, at half the speed.
    """
    driver, address = torch.cuda.cudart(), memory.data_ptr()
    if int(driver.cudaHostRegister(address, memory.nbytes, 0)) == 0:
        return partial(driver.cudaHostUnregister, address)
    with suppress(RuntimeError):  # the driver tells of its refusal whoever launches the next kernel
        torch.ones(1, device="cuda")
    return None
