"""A run's story as it goes on, or any moment of it once more."""

import time
from bisect import bisect_right
from typing import Any, NamedTuple

from monitor.source import Run, Tail
from monitor.state import State

__all__ = ["Player"]

APART = 20_000  # events from one mark to the next: what a jump has to read again, at most
LATE = (
    500  # events in a row that lie behind a moment, until no more of before it is expected: lanes tell of theirs late
)


class Mark(NamedTuple):
    """How things stood where a line of the file begins."""

    time: float
    position: int
    state: State


class Player:
    """Follows a run, and goes back in it.

    `state` is what is shown: the newest there is while `is_live`, or that at `shown`, which goes on by
    itself at `speed` unless it is `paused`.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._tail = Tail(run.folder / "events.jsonl")
        self._newest = State()
        self._events = 0
        self._marks = [Mark(0.0, 0, State())]
        self.state = self._newest
        self.is_live = True
        self.is_paused = False
        self.is_loading = True
        self.speed = 1.0
        self.shown = 0.0

    @property
    def end(self) -> float:
        """Seconds of the run's clock that have been told of."""
        return self._newest.now

    @property
    def damaged(self) -> int:
        """Lines and events that could not be understood."""
        return self._tail.damaged + self._newest.unknown

    def advance(self, seconds: float) -> None:
        """Read what has come, and let the moment that is shown go on by so many seconds of whoever looks on."""
        before = self._events
        began = time.monotonic()
        while self._read() and time.monotonic() - began < 0.1:
            pass
        self.is_loading = self._events > before and time.monotonic() - began >= 0.1
        if self.is_live:
            self.state, self.shown = self._newest, self._newest.now
        elif not self.is_paused:
            self.seek(self.shown + seconds * self.speed)

    def seek(self, moment: float) -> None:
        """Show how things stood at a moment; at the end of what is known, go on live."""
        if moment >= self.end:
            self.is_live = True
            self.state, self.shown = self._newest, self._newest.now
            return
        self.is_live, self.shown = False, max(0.0, moment)
        self.state = self._at(self.shown)

    def _read(self) -> int:
        count = 0
        for event in self._tail.read():
            self._newest.apply(event)
            self._events += 1
            count += 1
            if self._events % APART == 0:
                self._marks.append(Mark(self._newest.now, self._tail.position, self._newest.fork()))
        return count

    def _at(self, moment: float) -> State:
        mark = self._marks[bisect_right(self._marks, moment, key=lambda mark: mark.time) - 1]
        state, late = mark.state.fork(), 0
        tail = Tail(self.run.folder / "events.jsonl", mark.position)
        for event in tail.read():
            if ends(event) > moment:
                late += 1
                if late > LATE:
                    break
                continue
            late = 0
            state.apply(event)
        state.now = moment
        return state


def ends(event: dict[str, Any]) -> float:
    """When an event was over."""
    moment = event.get("end", event.get("time", 0.0))
    return float(moment) if isinstance(moment, int | float) else 0.0
