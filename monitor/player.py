"""A run's story as it goes on, or any moment of it once more."""

import time

from monitor.index import Index, gc_paused
from monitor.source import Run, Tail
from monitor.state import State

__all__ = ["Player"]

APART = 8_000  # events from one checkpoint of a run to the next: what a jump has to read again, at most, in a short one
PATIENCE = 0.15  # seconds of reading until the screen and the keys have their turn


class Player:
    """Follows a run, and goes back in it.

    `state` is what is shown: the newest there is while `is_live`, or that at `shown`, which goes on by
    itself at `speed` unless it is `paused`.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        events = run.folder / "events.jsonl"
        self._tail = Tail(events)
        self._index = Index(events, APART)
        self._newest = State()
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
        began = time.monotonic()
        while self._read() and time.monotonic() - began < PATIENCE:
            pass
        self.is_loading = time.monotonic() - began >= PATIENCE
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
        self.state = self._index.at(self.shown)

    @gc_paused()
    def _read(self) -> int:
        """Read some of what has come; returns how many events that were."""
        count = 0
        for event in self._tail.read():
            self._newest.apply(event)
            self._index.add(event, self._tail.position, self._newest)
            count += 1
        return count
