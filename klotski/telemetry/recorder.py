"""Spans on their way to `events.jsonl`, and what they add up to.

So that the file of a run of hours can still be opened, not all sweeps are written operation by
operation: `Detail` says how many lines a run may take. Of the others, `spans` and `bubbles` sum up
what a lane did in a layer, or the line of the sweep has to do. What has been done so far by each lane,
and by each expert, is therefore told in any detail: by the sweep, and by the state of things.
"""

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, NamedTuple

import msgspec

from klotski.core import Compute, LaneName, Operation, PrefetchCount, Span, SweepReport
from klotski.errors import OutputError
from klotski.openmp import roam
from klotski.telemetry.events import BubbleEvent, BubblesEvent, Counts, SpanEvent, SpansEvent, StateEvent, SweepEvent

__all__ = ["Allowance", "Done", "Recorder"]

logger = logging.getLogger(__name__)

PERIOD = 0.25  # seconds from one look at how things stand to the next
SELDOM = 3.0  # seconds from one count of the experts to the next, at least


class Detail(IntEnum):
    """How much of a sweep is written."""

    SWEEP = 0
    LAYERS = 1
    OPERATIONS = 2


class Allowance:
    """Lines that may be written: `first` of them at once, and `rate` more in each second of the run's clock."""

    def __init__(self, first: float, rate: float) -> None:
        self._first = first
        self._rate = rate
        self._spent = 0
        self._usual = 0

    def affords(self, now: float) -> bool:
        """Whether a sweep like the last one would find room."""
        return self._spent + self._usual <= self._first + self._rate * now

    def spend(self, lines: int) -> None:
        """A sweep has taken so many."""
        self._spent += lines
        self._usual = lines


class ExpertCounts:
    """Tokens of each expert, and how often each came to where arithmetic happens.

    Told now and then, when numbers are allowed for, and whenever nothing else would tell of them.
    """

    def __init__(self) -> None:
        self._tokens: dict[tuple[int, int], int] = defaultdict(int)
        self._arrivals: dict[str, dict[tuple[int, int], int]] = defaultdict(lambda: defaultdict(int))
        self._allowance = Allowance(20_000, 500)  # numbers: an hour of the largest models takes ten megabytes
        self._due = 0.0

    def clear(self) -> None:
        """Begin anew."""
        self._tokens.clear()
        self._arrivals.clear()

    def add(self, lane: str, operation: Operation) -> None:
        """Take an operation on one expert, or on several."""
        if lane not in (LaneName.COMPUTE, LaneName.CORES):
            self._arrivals[lane][operation.layer, operation.expert] += 1
        elif operation.kind == Compute.EXPERT:
            for expert, tokens in operation.parts or ((operation.expert, operation.tokens),):
                self._tokens[operation.layer, expert] += tokens

    def tell(self, now: float, *, must: bool) -> tuple[Counts, Counts]:
        """Tokens and arrivals so far; nothing if it is too early."""
        if not must and (now < self._due or not self._allowance.affords(now)):
            return (), ()
        arrivals = self._arrivals.get(LaneName.LINK) or self._arrivals.get(LaneName.DISK) or {}
        told = by_layer(self._tokens), by_layer(arrivals)
        self._due = now + SELDOM
        self._allowance.spend(sum(len(layer) for counts in told for layer in counts))
        return told


def by_layer(counts: Mapping[tuple[int, int], int]) -> Counts:
    """Numbers by layer and expert as a table."""
    lengths: dict[int, int] = {}
    for layer, expert in counts:
        lengths[layer] = max(lengths.get(layer, 0), expert + 1)
    layers = range(1 + max(lengths, default=-1))
    return tuple(tuple(counts.get((layer, expert), 0) for expert in range(lengths.get(layer, 0))) for layer in layers)


class Done(NamedTuple):
    """What lanes have done since sweeps began, by lane: seconds at work, bytes; and seconds that compute waited."""

    busy: dict[str, float]
    nbytes: dict[str, int]
    bubbles: float


class Recorder:
    """Takes spans from all lanes; `flush` hands the encoded lines to `write` (None: they are only added up).

    Where `write` raises an `OutputError`, nothing more is written, after one warning: no result depends on it.

    `allowances`: for sweeps that are written operation by operation, and layer by layer.
    """

    def __init__(
        self,
        write: Callable[[bytes], None] | None,
        operations: Allowance | None = None,
        layers: Allowance | None = None,
    ) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._encoder = msgspec.json.Encoder()
        self._pending: list[msgspec.Struct] = []
        self._allowances = {
            Detail.OPERATIONS: operations or Allowance(100_000, 20),
            Detail.LAYERS: layers or Allowance(50_000, 20),
        }
        self._detail = Detail.OPERATIONS if write else Detail.SWEEP
        self._lines = 0  # of this sweep
        self._told: deque[tuple[type[SpanEvent], Span]] = deque()  # of lanes' own threads, which wait for nobody
        self._sums: dict[tuple[type[SpanEvent], str, str, int], SpansEvent] = {}
        self._busy: dict[str, float] = defaultdict(float)
        self._bytes: dict[str, int] = defaultdict(int)
        self._bubbles = 0.0
        self._experts = ExpertCounts()
        self._batches: dict[int, tuple[str, int]] = {}  # what each did last in this sweep; -1: the group

    def begin(self) -> None:
        """Sweeps begin: what was done until now, to load what stays, is none of theirs."""
        with self._lock:
            self._take()
            self._busy.clear()
            self._bytes.clear()
            self._bubbles = 0.0
            self._experts.clear()

    def span(self, span: Span) -> None:
        """Take a finished operation."""
        self._told.append((SpanEvent, span))

    def bubble(self, span: Span) -> None:
        """Take a wait of the compute lane."""
        self._told.append((BubbleEvent, span))

    @property
    def busy_seconds(self) -> dict[str, float]:
        """Seconds that each lane has worked."""
        with self._lock:
            self._take()
            return dict(self._busy)

    @property
    def bytes_moved(self) -> dict[str, int]:
        """Bytes that each lane has moved."""
        with self._lock:
            self._take()
            return dict(self._bytes)

    @property
    def bubble_seconds(self) -> float:
        """Seconds that the compute lane has waited."""
        with self._lock:
            self._take()
            return self._bubbles

    @property
    def is_writing(self) -> bool:
        """Whether there will be a file of events."""
        return self._write is not None

    def sweep(
        self,
        report: SweepReport,
        flops: int = 0,
        requests: int = 0,
        prefetch: PrefetchCount | None = None,
        *,
        is_last: bool = False,
    ) -> Done:
        """Take a finished sweep, choose how much of the next one is written, and return what lanes have done so far.

        `requests`, `prefetch`: so far. `is_last`: none will follow, as far as anybody knows.
        """
        with self._lock:
            self._take()
            self._settle_sums()
            if self._detail is not Detail.SWEEP:
                self._allowances[self._detail].spend(self._lines + len(self._pending))
            self._lines = -len(self._pending) - 1  # these and the sweep's own are flushed when the next one has begun
            self._batches.clear()
            if self._write is not None:
                self._pending.append(self._sweep_event(report, flops, requests, prefetch or PrefetchCount(), is_last))
                afforded = (detail for detail, allowance in self._allowances.items() if allowance.affords(report.end))
                self._detail = max(afforded, default=Detail.SWEEP)
            return Done(dict(self._busy), dict(self._bytes), self._bubbles)

    def _sweep_event(
        self, report: SweepReport, flops: int, requests: int, prefetch: PrefetchCount, is_last: bool
    ) -> SweepEvent:
        tokens, arrivals = self._experts.tell(report.end, must=is_last or not report.index)
        return SweepEvent(
            index=report.index,
            begin=report.begin,
            end=report.end,
            batches=report.batches,
            prefill_tokens=report.prefill_tokens,
            decode_tokens=report.decode_tokens,
            output_tokens=report.output_tokens,
            cache_bytes=report.cache_bytes,
            flops=flops,
            requests=requests,
            requested=prefetch.requested,
            used=prefetch.used,
            tokens=tokens,
            arrivals=arrivals,
            **self._done(),
        )

    def _done(self) -> dict[str, Any]:
        """What lanes have done since sweeps began; a nanosecond is the last digit that means something."""
        return {
            "busy": {lane: round(seconds, 9) for lane, seconds in self._busy.items()},
            "bytes": {lane: count for lane, count in self._bytes.items() if count},
            "bubble": round(self._bubbles, 9),
        }

    def flush(self) -> None:
        """Write what has come since the last flush."""
        with self._writing:
            with self._lock:
                self._take()
                self._settle_sums()
                pending, self._pending = self._pending, []
                self._lines += len(pending)
            if pending and self._write is not None:
                try:
                    self._write(self._encoder.encode_lines(pending))
                except OutputError as error:
                    self._write = None
                    self._detail = Detail.SWEEP
                    logger.warning("%s; the run goes on without events", error)

    @contextmanager
    def telling(self, look: Callable[[], StateEvent]) -> Iterator[None]:
        """Write how things stand, and what has come, several times a second and at the end, for who looks on."""
        if self._write is None:
            yield
            return
        ended = threading.Event()

        def tell() -> None:
            roam()
            is_over = False
            while not is_over:
                is_over = ended.wait(PERIOD)
                self._tell(look())

        teller = threading.Thread(target=tell, name="klotski-telling", daemon=True)
        teller.start()
        try:
            yield
        finally:
            ended.set()
            teller.join()

    def _tell(self, state: StateEvent) -> None:
        with self._lock:
            self._take()
            self._settle_sums()  # so that what the state counts has been told before it
            for name, value in self._done().items():
                setattr(state, name, value)
            if self._detail is not Detail.OPERATIONS:
                state.batches = tuple((batch, *stage) for batch, stage in self._batches.items())
            self._pending.append(state)
        self.flush()

    def _take(self) -> None:
        """Add up what lanes have told since the last time."""
        told, busy, moved, experts = self._told, self._busy, self._bytes, self._experts
        operations, layers = self._detail is Detail.OPERATIONS, self._detail is Detail.LAYERS
        compute, cores = LaneName.COMPUTE, LaneName.CORES
        while told:
            kind, span = told.popleft()
            lane, operation, begin, end = span
            if kind is SpanEvent:
                busy[lane] += end - begin
                if lane != cores:  # which look at what stays where it is
                    moved[lane] += operation.nbytes
                if operation.expert >= 0 or operation.parts:
                    experts.add(lane, operation)
                if not operations and lane == compute:
                    self._batches[operation.batch] = str(operation.kind), operation.layer
            else:
                self._bubbles += end - begin
            if operations:
                self._pending.append(to_event(kind, span))
            elif layers:
                self._sum_up(kind, span)

    def _settle_sums(self) -> None:
        self._pending += self._sums.values()
        self._sums.clear()

    def _sum_up(self, kind: type[SpanEvent], span: Span) -> None:
        lane, (what, layer, _, _, nbytes, tokens, _), begin, end = span
        known = self._sums.get((kind, lane, what, layer))
        if known is None:
            sums = BubblesEvent if kind is BubbleEvent else SpansEvent
            known = self._sums[kind, lane, what, layer] = sums(lane, str(what), layer, begin, end, 0.0, 0)
        known.end = end
        known.seconds += end - begin
        known.count += 1
        known.bytes += nbytes
        known.tokens += tokens


def to_event(kind: type[SpanEvent], span: Span) -> SpanEvent:
    """The line for a span; nanoseconds are the last digit that means something."""
    lane, (what, layer, expert, batch, nbytes, tokens, parts), begin, end = span
    return kind(lane, str(what), layer, round(begin, 9), round(end, 9), expert, batch, nbytes, tokens, parts)
