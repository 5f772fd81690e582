"""A lane: its last operations, and how much it has done up to each moment."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from monitor.curve import Curve
from monitor.events import Operation, Sum

__all__ = ["Lane", "Span", "span_of"]

KEPT = 3000  # operations of a lane
LOST = 0.2  # of what a lane has done: where operations say less, they were not written


class Span(NamedTuple):
    """Something that took from `begin` to `end`; `seconds` of it, if it is a sum."""

    begin: float
    end: float
    seconds: float
    kind: str
    layer: int
    expert: int
    batch: int
    nbytes: int
    tokens: int
    number: int
    parts: tuple[tuple[int, int], ...] = ()  # experts that were computed at once, and the tokens of each

    @property
    def name(self) -> str:
        """What it was, in words."""
        what = f"layer {self.layer} {self.kind}"
        if self.parts:
            return f"{what}, {len(self.parts)} at once"
        if self.number > 1:
            return f"{what}, {self.number} of them"
        return what + (f" {self.expert}" if self.expert >= 0 else "") + (f", batch {self.batch}" * (self.batch >= 0))


def span_of(event: Operation | Sum) -> Span:
    """What is kept of an operation, or of several that were summed up."""
    begin, end = event.begin, event.end
    if isinstance(event, Sum):
        about = (event.kind, event.layer, -1, -1, event.bytes, event.tokens, event.count)
        return Span(begin, end, min(event.seconds, end - begin), *about)
    about = (event.kind, event.layer, event.expert, event.batch, event.bytes, event.tokens, 1)
    return Span(begin, end, end - begin, *about, event.parts)


@dataclass
class Lane:
    """A lane. `seconds`, `nbytes`: since sweeps began; until then, all."""

    spans: deque[Span] = field(default_factory=lambda: deque(maxlen=KEPT))
    curve: Curve = field(default_factory=Curve)
    seconds: float = 0.0
    nbytes: int = 0
    settled: float = 0.0  # seconds that the run had counted when it said so last
    waiting: tuple[int, int] | None = None  # operations and bytes, when the run last said so

    def fork(self) -> "Lane":
        """The same, to go on from."""
        return Lane(self.spans.copy(), self.curve.fork(), self.seconds, self.nbytes, self.settled, self.waiting)

    def add(self, span: Span) -> None:
        """It has done something."""
        self.spans.append(span)
        self.curve.add(span.begin, span.end, span.seconds, span.nbytes)
        self.seconds += span.seconds
        self.nbytes += span.nbytes

    def begin(self, moment: float) -> None:
        """Sweeps began then: what was done before is to load what stays."""
        if self.curve.times:
            seconds, nbytes = self.curve.between(moment, self.curve.times[-1])
            self.seconds, self.nbytes = seconds, round(nbytes)

    def settle(self, seconds: float, nbytes: int, begin: float, end: float) -> bool:
        """The run counts so much in all; whether most of it between two moments was not told one by one."""
        missing, done = seconds - self.seconds, seconds - self.settled
        is_lost = missing > LOST * done and missing > 1e-6
        if is_lost:
            self.curve.add(begin, end, min(missing, end - begin), max(0, nbytes - self.nbytes))
        self.seconds, self.nbytes, self.settled = seconds, nbytes, seconds
        return is_lost

    def between(self, begin: float, end: float) -> Iterator[Span]:
        """Spans that overlap a time, of those that are kept, the latest first."""
        return (span for span in reversed(self.spans) if span.end > begin and span.begin < end)

    def at(self, moment: float) -> Span | None:
        """What it did at a moment, or last before it, of what is kept."""
        return next((span for span in reversed(self.spans) if span.begin <= moment), None)

    def busy(self, begin: float, end: float) -> float:
        """The share of a time in which it worked."""
        return min(1.0, self.curve.between(begin, end)[0] / (end - begin)) if end > begin else 0.0

    def rate(self, begin: float, end: float) -> float:
        """Bytes a second while it worked."""
        seconds, nbytes = self.curve.between(begin, end)
        return nbytes / seconds if seconds else 0.0
