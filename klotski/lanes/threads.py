"""Lanes on CPU: a thread with a queue, and the calling thread itself."""

import queue
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from klotski.core import Operation, Span
from klotski.lanes.base import Clock, Event, Lane, Pending, SpanSink
from klotski.openmp import roam

__all__ = ["InlineLane", "LaneClosedError", "ThreadLane"]


class LaneClosedError(Exception):
    """What an operation ends with that a closed lane never began."""


class _Done:
    """The event of an operation that ended before `submit` returned."""

    def is_done(self) -> bool:
        return True

    def wait(self) -> None:
        return


class _Completion:
    """The event of an operation on another thread."""

    def __init__(self) -> None:
        self._flag = threading.Event()
        self._error: BaseException | None = None

    def is_done(self) -> bool:
        return self._flag.is_set()

    def wait(self) -> None:
        self._flag.wait()
        if self._error is not None:
            raise self._error

    def complete(self, error: BaseException | None = None) -> None:
        self._error = error
        self._flag.set()


class InlineLane(Lane):
    """Runs each operation in `submit`, on the caller's thread, and reports its waits as bubbles.

    The compute lane of a machine without GPU: torch spreads the arithmetic over the cores itself,
    and coroutines have to be resumed on the thread that made them. What an operation or one of
    `after` raises comes out of `submit`, so that nothing is submitted after it.
    """

    def submit(self, operation: Operation, run: Callable[[], object], after: Sequence[Event] = ()) -> Event:
        """Wait for `after`, run the operation, and return a completed event."""
        pending = [event for event in after if not event.is_done()]
        if pending:
            begin = self._clock()
            for event in pending:
                event.wait()
            self._sink.bubble(Span(self.name, operation, begin, self._clock()))
        for event in after:
            event.wait()  # done, but it may carry an error
        self._run(operation, run)
        return _Done()


class _Queued(NamedTuple):
    operation: Operation
    run: Callable[[], object]
    after: Sequence[Event]
    completion: _Completion


class _Begun(NamedTuple):
    operation: Operation
    begin: float
    pending: object
    error: BaseException | None
    completion: _Completion


class ThreadLane(Lane):
    """Begins operations on a thread of its own, and sees them to their end on another.

    `depth`: how many may be under way. An operation whose `run` returns a `Pending` has only
    been begun by then, and ends when its `wait` returns; with a depth of two or more the next
    is begun meanwhile, so that a device that works on several requests at once never runs dry
    between two operations. Their spans are told one after the other all the same: each begins
    where the one before it ended.
    """

    def __init__(self, name: str, sink: SpanSink, clock: Clock, depth: int = 1) -> None:
        super().__init__(name, sink, clock)
        self._queue: queue.SimpleQueue[_Queued | None] = queue.SimpleQueue()
        self._begun: queue.SimpleQueue[_Begun | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(depth)
        self._error: BaseException | None = None
        self._closing = False
        self._submitted, self._ended = [0, 0], [0, 0]  # operations and bytes, each counted by one thread
        self._threads = [
            threading.Thread(target=work, name=f"klotski-{name}-{what}", daemon=True)
            for what, work in (("begin", self._begin), ("end", self._end))
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, operation: Operation, run: Callable[[], object], after: Sequence[Event] = ()) -> Event:
        """Queue the operation and return at once."""
        assert not self._closing, f"the {self.name} lane was closed before {operation} was submitted"
        completion = _Completion()
        self._submitted[0] += 1
        self._submitted[1] += operation.nbytes
        self._queue.put(_Queued(operation, run, after, completion))
        return completion

    @property
    def waiting(self) -> tuple[int, int]:
        """Operations and bytes that have not ended."""
        (count, nbytes), (ended, done) = self._submitted, self._ended
        return max(0, count - ended), max(0, nbytes - done)

    def close(self) -> None:
        """Let the operations in progress end, drop the others, and join the threads."""
        self._closing = True
        self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _begin(self) -> None:
        roam()
        while (item := self._queue.get()) is not None:
            self._room.acquire()
            if self._closing and self._error is None:
                self._error = LaneClosedError(f"the {self.name} lane was closed")
            begin, pending, error = 0.0, None, self._error
            try:
                if error is None:
                    for event in item.after:
                        event.wait()
                    error = self._error  # of another operation, meanwhile
                if error is None:
                    begin = self._clock()
                    pending = item.run()
            except BaseException as raised:
                error = self._error = raised
            self._begun.put(_Begun(item.operation, begin, pending, error, item.completion))
        self._begun.put(None)

    def _end(self) -> None:
        roam()
        ended = 0.0
        while (item := self._begun.get()) is not None:
            error = item.error
            try:
                if isinstance(item.pending, Pending):
                    item.pending.wait()
            except BaseException as raised:
                error = self._error = raised
            if error is None:
                begin, ended = max(item.begin, ended), self._clock()
                self._sink.span(Span(self.name, item.operation, begin, ended))
            self._room.release()
            self._ended[0] += 1
            self._ended[1] += item.operation.nbytes
            item.completion.complete(error)
