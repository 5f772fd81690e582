"""Spans on their way to `events.jsonl`, and what they add up to.

A line is a JSON object with `event`: `span` (an operation on a lane), `bubble` (the compute lane
waited for this operation's block) or `sweep`. Times are seconds since the run's clock started,
which `run.json` gives as wall-clock time. Fields at their default are left out.
"""

import threading
from collections import defaultdict
from collections.abc import Callable

import msgspec

from klotski.core import DENSE, Span, SweepReport

__all__ = ["Recorder", "SpanEvent", "SweepEvent"]


class SpanEvent(msgspec.Struct, tag_field="event", tag="span", omit_defaults=True, gc=False):
    """A line for a span. `expert`: -1 for none; `batch`: -1 for the whole group."""

    lane: str
    kind: str
    layer: int
    begin: float
    end: float
    expert: int = DENSE
    batch: int = -1
    bytes: int = 0
    tokens: int = 0


class BubbleEvent(SpanEvent, tag="bubble", omit_defaults=True, gc=False):
    """A line for a wait of the compute lane; the fields are those of the operation that waited."""


class SweepEvent(msgspec.Struct, tag_field="event", tag="sweep"):
    """A line for a sweep; the fields are those of the report."""

    index: int
    begin: float
    end: float
    batches: int
    prefill_tokens: int
    decode_tokens: int
    output_tokens: int
    cache_bytes: int


class Recorder:
    """Takes spans from all lanes; `flush` hands the encoded lines to `write` (None: they are only added up)."""

    def __init__(self, write: Callable[[bytes], None] | None) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._encoder = msgspec.json.Encoder()
        self._pending: list[msgspec.Struct] = []
        self.busy_seconds: dict[str, float] = defaultdict(float)
        self.bytes_moved: dict[str, int] = defaultdict(int)
        self.bubble_seconds = 0.0

    def begin(self) -> None:
        """Sweeps begin: what was done until now, to load what stays, is none of theirs."""
        with self._lock:
            self.busy_seconds.clear()
            self.bytes_moved.clear()
            self.bubble_seconds = 0.0

    def span(self, span: Span) -> None:
        """Take a finished operation."""
        with self._lock:
            self.busy_seconds[span.lane] += span.end - span.begin
            self.bytes_moved[span.lane] += span.operation.nbytes
            self._keep(SpanEvent, span)

    def bubble(self, span: Span) -> None:
        """Take a wait of the compute lane."""
        with self._lock:
            self.bubble_seconds += span.end - span.begin
            self._keep(BubbleEvent, span)

    @property
    def is_writing(self) -> bool:
        """Whether there will be a file of events."""
        return self._write is not None

    def _keep(self, kind: type[SpanEvent], span: Span) -> None:
        if self._write is not None:
            self._pending.append(to_event(kind, span))

    def sweep(self, report: SweepReport) -> None:
        """Take a finished sweep."""
        with self._lock:
            self._pending.append(msgspec.convert(report, SweepEvent, from_attributes=True))

    def flush(self) -> None:
        """Write what has come since the last flush."""
        with self._lock:
            pending, self._pending = self._pending, []
        if pending and self._write is not None:
            self._write(self._encoder.encode_lines(pending))


def to_event(kind: type[SpanEvent], span: Span) -> SpanEvent:
    """The line for a span; nanoseconds are the last digit that means something."""
    what, layer, expert, batch, nbytes, tokens = span.operation
    begin, end = round(span.begin, 9), round(span.end, 9)
    return kind(span.lane, str(what), layer, begin, end, expert, batch, nbytes, tokens)
