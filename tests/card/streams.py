"""Streams and events of a card: queues that threads work through, with the order that they promise.

Every stream has a clock of what is known, by the time that it comes to an operation, to have been done: so many
operations of each stream. Waits pass it on. Two operations of which neither is in the other's clock
may be done in any order, whatever order they were done in this time.
"""

import queue
import threading
import time
from collections.abc import Callable
from random import Random
from typing import Any, ClassVar

import numpy as np
import torch

__all__ = ["CurrentStream", "Event", "Known", "Stream", "Timeline"]

LATE = 0.1  # of all operations
LONGEST = 1e-3  # seconds that one is late, at most

Known = dict[int, int]  # stream: how many of its operations


def learn(known: Known, more: Known) -> None:
    """Know what is known elsewhere, too."""
    for stream, count in more.items():
        known[stream] = max(known.get(stream, 0), count)


class Timeline:
    """All streams of a card. `host`: what the host has waited for; what it queues afterwards comes behind that."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.lock = threading.RLock()
        self.host: Known = {}
        self.streams: list[Stream] = []
        self.error: BaseException | None = None

    def synchronize(self) -> None:
        """Wait for all streams."""
        for stream in list(self.streams):
            stream.synchronize()

    def check(self) -> None:
        """Raise what an operation raised."""
        if self.error is not None:
            raise RuntimeError("an operation on the card failed") from self.error


class Stream:
    """Stands in for `torch.Stream`; see the module."""

    timeline: ClassVar[Timeline]

    def __init__(self, device: Any = None, *, priority: int = 0) -> None:
        timeline = self.timeline
        with timeline.lock:
            self.number = len(timeline.streams)
            timeline.streams.append(self)
        self.known: Known = {self.number: 0}
        self._timeline = timeline
        self._queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"card-{self.number}", daemon=True)
        self._thread.start()

    def queue(self, run: Callable[[], object]) -> int:
        """Queue an operation; returns its number on this stream."""
        timeline = self._timeline
        with timeline.lock:
            learn(self.known, timeline.host)
            self.known[self.number] += 1
            self._queue.put(run)
            return self.known[self.number]

    def wait_event(self, event: "Event") -> None:
        """What is queued from now on comes behind the event as it was recorded last."""
        recorded = event.recorded
        if recorded is not None:
            flag, known = recorded
            with self._timeline.lock:
                self._queue.put(flag.wait)
                learn(self.known, known)

    def record_event(self, event: "Event | None" = None) -> "Event":
        """An event behind all that is queued."""
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        """Wait for all that is queued."""
        self.record_event().synchronize()

    def end(self) -> None:
        """Wait, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def __enter__(self) -> "Stream":
        CurrentStream.stack().append(self)
        return self

    def __exit__(self, *args: object) -> None:
        assert CurrentStream.stack().pop() is self

    def _work(self) -> None:
        random = Random(self._timeline.random.random())
        with torch.inference_mode():
            while (run := self._queue.get()) is not None:
                if random.random() < LATE:
                    time.sleep(random.random() * LONGEST)
                try:
                    run()
                except BaseException as error:
                    self._timeline.error = self._timeline.error or error
                del run  # and what it holds


class CurrentStream:
    """The stream of a thread; the default one, if it has chosen none."""

    default: ClassVar[Stream]
    _local: ClassVar[threading.local] = threading.local()

    @classmethod
    def stack(cls) -> list[Stream]:
        """The streams that a thread has entered."""
        if not hasattr(cls._local, "stack"):
            cls._local.stack = []
        stack: list[Stream] = cls._local.stack
        return stack

    @classmethod
    def get(cls) -> Stream:
        """The one entered last."""
        stack = cls.stack()
        return stack[-1] if stack else cls.default


class Event:
    """Stands in for `torch.Event`."""

    def __init__(self, device: Any = None, *, enable_timing: bool = False) -> None:
        self.recorded: tuple[threading.Event, Known] | None = None
        self._time: float | None = None
        self._is_timed = enable_timing

    def record(self, stream: Stream | None = None) -> None:
        """Come when a stream has done all that is queued on it."""
        stream = stream or CurrentStream.get()
        flag = threading.Event()

        def come() -> None:
            self._time = time.perf_counter()
            flag.set()

        with stream._timeline.lock:
            stream.queue(come)
            self.recorded = flag, dict(stream.known)

    def query(self) -> bool:
        """Whether it has come."""
        if self.recorded is None:
            return True
        flag, known = self.recorded
        if not flag.is_set():
            return False
        self._tell(known)
        return True

    def synchronize(self) -> None:
        """Wait until it has come."""
        if self.recorded is not None:
            flag, known = self.recorded
            flag.wait()
            self._tell(known)

    def elapsed_time(self, other: "Event") -> float:
        """Milliseconds until another one came."""
        assert self._is_timed and other._is_timed, "an event without timing was asked for the time"
        assert self.query() and other.query(), "an event was asked for the time before it came"
        assert self._time is not None and other._time is not None
        return float(np.float32(1e3 * (other._time - self._time)))  # in a driver's precision

    def _tell(self, known: Known) -> None:
        timeline = Stream.timeline
        timeline.check()
        with timeline.lock:
            learn(timeline.host, known)
