"""Lanes on CPU: a thread with a queue, and the calling thread itself."""

import queue
import threading
from collections.abc import Callable, Sequence

from klotski.core import Operation, Span
from klotski.lanes.base import Clock, Event, Lane, SpanSink

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


class ThreadLane(Lane):
    """Runs operations on a thread of its own, one after the other."""

    def __init__(self, name: str, sink: SpanSink, clock: Clock) -> None:
        super().__init__(name, sink, clock)
        self._queue: queue.SimpleQueue[tuple[Operation, Callable[[], object], Sequence[Event], _Completion] | None] = (
            queue.SimpleQueue()
        )
        self._error: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=f"klotski-{name}", daemon=True)
        self._thread.start()

    def submit(self, operation: Operation, run: Callable[[], object], after: Sequence[Event] = ()) -> Event:
        """Queue the operation and return at once."""
        assert not self._closing, f"the {self.name} lane was closed before {operation} was submitted"
        completion = _Completion()
        self._queue.put((operation, run, after, completion))
        return completion

    def close(self) -> None:
        """Let the operation in progress end, drop the others, and join the thread."""
        self._closing = True
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            operation, run, after, completion = item
            if self._closing and self._error is None:
                self._error = LaneClosedError(f"the {self.name} lane was closed")
            if self._error is None:
                try:
                    for event in after:
                        event.wait()
                    self._run(operation, run)
                except BaseException as error:
                    self._error = error
            completion.complete(self._error)
