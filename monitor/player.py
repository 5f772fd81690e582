"""A run's story as it goes on, or any moment of it once more."""

import time

from monitor.index import Index, gc_paused
from monitor.source import Run, Tail
from monitor.state import State
from monitor.units import when

__all__ = ["Player"]

APART = 8_000  # events from one checkpoint of a run to the next: what a jump has to read again, at most, in a short one
PATIENCE = 0.15  # seconds of reading until the screen and the keys have their turn


class Player:
    """Follows a run, and goes back in it.

    `state` is what is shown: the newest there is while `is_live`, or that at `shown`, which goes on by
    itself at `speed` unless it `is_paused`.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.is_paused = False
        self.speed = 1.0
        self._begin()

    def _begin(self) -> None:
        """Nothing has been read."""
        events = self.run.folder / "events.jsonl"
        self._tail = Tail(events)
        self._index = Index(events, APART)
        self._newest = State()
        self.state = self._newest
        self.is_live = True
        self.is_loading = True
        self.shown = 0.0

    @property
    def end(self) -> float:
        """The moment, in the run's clock, behind which nothing has been done yet."""
        return self._newest.active or self._newest.now

    @property
    def damaged(self) -> int:
        """Lines that could not be understood."""
        return self._tail.damaged

    @property
    def has_read(self) -> float:
        """The share of what there is that has been read."""
        return self._tail.position / self._tail.size if self._tail.size else float(not self.is_loading)

    @property
    def words(self) -> str:
        """What is shown, in words; nothing while it is the newest there is."""
        if self.is_live:
            return ""
        if self.is_paused:
            return f"paused at {when(self.shown)}"
        return f"replay at {self.speed:g} times the speed, {when(self.shown)}"

    def advance(self, seconds: float) -> None:
        """Read what has come, and let the moment that is shown go on by so many seconds of whoever looks on."""
        began = time.monotonic()
        while self._read() and time.monotonic() - began < PATIENCE:
            pass
        self.is_loading = time.monotonic() - began >= PATIENCE
        if self._tail.is_replaced:
            self._begin()
        elif self.is_live:
            self.state, self.shown = self._newest, self.end
        elif not self.is_paused:
            self.seek(self.shown + seconds * self.speed)

    def hold(self) -> None:
        """Stay at the moment that is shown."""
        if self.is_live:
            self.is_live, self.state = False, self.state.fork()
            self.state.now = self.shown
        self.is_paused = True

    def seek(self, moment: float) -> None:
        """Show how things stood at a moment; at the end of what is known, go on live."""
        if moment >= self.end:
            self.is_live, self.is_paused = True, False
            self.state, self.shown = self._newest, self.end
            return
        self.is_live, self.shown = False, max(0.0, moment)
        self.state = self._index.at(self.shown)

    def look(self, moment: float) -> State:
        """How things stood at a moment, without showing it."""
        return self._index.at(moment)

    @gc_paused()
    def _read(self) -> int:
        """Read some of what has come; returns how many bytes that were."""
        before = self._tail.position
        for event in self._tail.read():
            self._newest.apply(event)
            self._index.add(event, self._tail.position, self._newest)
        return self._tail.position - before
