"""What the panels show, as one snapshot that events move on. Bounded, however long the run.

An event that lacks a field, or has another type of value than it should, changes nothing.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from math import ceil
from typing import Any, NamedTuple

from monitor.units import brief, size

__all__ = ["Cause", "Lane", "Span", "State"]

KEPT = 6000  # spans of a lane
SWEEPS = 2000
STAGES = {  # of a batch, by the operation of it that ended last
    "start": "waiting",
    "attention": "router",
    "project": "router",
    "finish": "done",
    "sample": "waiting",
}
ENOUGH = 0.05  # of the time; less waiting is not worth a word
SLOW = 0.6  # of what a plan counted on; a disk that others use, too, may well give three quarters
FULL = 0.85  # of the time: a lane that is busy for so long has no more to give


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


@dataclass
class Lane:
    """A lane: what it did last, and all that it did."""

    spans: deque[Span] = field(default_factory=lambda: deque(maxlen=KEPT))
    seconds: float = 0.0
    nbytes: int = 0
    waiting: tuple[int, int] = (0, 0)  # operations and bytes, when the run last said so

    def fork(self) -> "Lane":
        """The same, to go on from."""
        return Lane(self.spans.copy(), self.seconds, self.nbytes, self.waiting)

    def between(self, begin: float, end: float) -> Iterator[Span]:
        """Spans that overlap a time, the latest first."""
        for span in reversed(self.spans):
            if span.end <= begin:
                return
            if span.begin < end:
                yield span

    def busy(self, begin: float, end: float) -> float:
        """The share of a time in which it worked."""
        return share(self.between(begin, end), begin, end)


class Cause(NamedTuple):
    """Why the compute lane waits, and what could be done about it."""

    waits: float  # share of the time
    sentence: str


class State:
    """Everything that a run has told so far."""

    def __init__(self) -> None:
        self.now = 0.0  # seconds of the run's clock that it has told of
        self.active = 0.0  # when the last thing that it told of ended on a lane
        self.lanes: dict[str, Lane] = {}
        self.bubbles = Lane()
        self.stages: dict[int, tuple[str, int]] = {}  # of each batch: stage and layer
        self.phase: tuple[str, int] = ("waiting", 0)  # of the group
        self.sweeps: deque[dict[str, Any]] = deque(maxlen=SWEEPS)
        self.num_sweeps = 0
        self.sweep_seconds = 0.0
        self.output_tokens = 0
        self.prompt_tokens = 0
        self.tokens: dict[int, dict[int, int]] = defaultdict(dict)  # of each layer's experts
        self.arrivals: dict[int, dict[int, int]] = defaultdict(dict)
        self.wanted: dict[str, int] = {}
        self.memory: deque[tuple[float, int]] = deque(maxlen=SWEEPS)
        self.requests = 0
        self.prefetch = (0, 0)  # guesses that were sent for, and used
        self.unknown = 0  # events that nobody here knows, or that lack something

    def fork(self) -> "State":
        """The same, to go on from without changing this one."""
        other = copy(self)
        other.lanes = {name: lane.fork() for name, lane in self.lanes.items()}
        other.bubbles = self.bubbles.fork()
        other.stages, other.wanted = dict(self.stages), dict(self.wanted)
        other.sweeps, other.memory = self.sweeps.copy(), self.memory.copy()
        other.tokens = defaultdict(dict, {layer: dict(each) for layer, each in self.tokens.items()})
        other.arrivals = defaultdict(dict, {layer: dict(each) for layer, each in self.arrivals.items()})
        return other

    def apply(self, event: Mapping[str, Any]) -> None:
        """Move on by an event."""
        try:
            match event.get("event"):
                case "span" | "spans":
                    self._span(str(event["lane"]), read_span(event))
                case "bubble" | "bubbles":
                    self._keep(self.bubbles, read_span(event))
                case "sweep":
                    self._sweep(event)
                case "state":
                    self._look(event)
                case _:
                    self.unknown += 1
        except (KeyError, TypeError, ValueError):
            self.unknown += 1

    @property
    def rate(self) -> float:
        """Output tokens a second over all sweeps."""
        return self.output_tokens / self.sweep_seconds if self.sweep_seconds else 0.0

    @property
    def rate_now(self) -> float:
        """Output tokens a second over the last sweeps."""
        last = list(self.sweeps)[-8:]
        seconds = sum(each["end"] - each["begin"] for each in last)
        return sum(each.get("output_tokens", 0) for each in last) / seconds if seconds > 0 else 0.0

    @property
    def last_sweep(self) -> tuple[float, float]:
        """Begin and end of the last one; what has been told, if none has ended."""
        if not self.sweeps:
            return 0.0, self.now
        return self.sweeps[-1]["begin"], self.sweeps[-1]["end"]

    @property
    def busiest(self) -> tuple[str, float]:
        """The lane that has worked for the largest share of all sweeps, and that share."""
        shares = {name: lane.seconds / self.sweep_seconds for name, lane in self.lanes.items() if self.sweep_seconds}
        name = max(shares, key=shares.__getitem__, default="")
        return name, min(1.0, shares.get(name, 0.0))

    def cause(self, begin: float, end: float, pipeline: Mapping[str, Any], plan: Mapping[str, Any]) -> Cause:
        """Why compute waited between two times. `pipeline`, `plan`: the run's own, as far as they are known."""
        waits = self.bubbles.busy(begin, end)
        works = self.lanes["compute"].busy(begin, end) if "compute" in self.lanes else 0.0
        if not waits and not works:
            return Cause(waits, "Nothing is computed: the run loads, or plans, or has ended.")
        if waits < ENOUGH:
            return Cause(waits, "The compute lane hardly waits: arithmetic sets the pace.")
        ways = {name: lane for name, lane in self.lanes.items() if name != "compute"}
        busiest, used = max(
            ((name, lane.busy(begin, end)) for name, lane in ways.items()), key=lambda each: each[1], default=("", 0.0)
        )
        reasons: dict[str, float] = defaultdict(float)
        for span in self.bubbles.between(begin, end):
            reasons[span.kind] += span.seconds
        kind = max(reasons, key=lambda each: reasons[each]) if reasons else "blocks"
        what = {"expert": "experts", "attention": "dense parts"}.get(kind, kind)
        if used >= FULL:
            lead = f"Compute waits for {what} while {busiest} never rests ({used:.0%} busy): {busiest} sets the pace. "
            return Cause(waits, lead + self._remedy(busiest, begin, end, plan))
        late = [f"{key}={pipeline[key]}" for key in ("prefetch", "on_demand") if pipeline.get(key) in ("none", "lazy")]
        why = f" ({', '.join(late)})" if late else ""
        return Cause(
            waits,
            f"Compute waits for {what} while {busiest or 'every lane'} is busy for {used:.0%} only: blocks are sent "
            f"for too late{why}, or there are too few slots for them.",
        )

    def _remedy(self, name: str, begin: float, end: float, plan: Mapping[str, Any]) -> str:
        """What could be done about a lane that never rests."""
        spans = list(self.lanes[name].between(begin, end))
        moved, seconds = sum(span.nbytes for span in spans), sum(span.seconds for span in spans)
        expected = (plan.get("rates") or {}).get(name)
        if seconds and isinstance(expected, int | float) and moved / seconds < SLOW * expected:
            return (
                f"It moves {size(moved / seconds)}/s, and the plan counted on {size(expected)}/s: something slows it."
            )
        n, layer = plan.get("n_batches"), (plan.get("conditions") or {}).get("7") or {}
        computes, reads = layer.get("compute", 0.0), layer.get("transfer", 0.0)
        if not isinstance(n, int) or not 0 < computes < reads:
            return "More sequences for each arrival (n_batches, batch_size) would help, or more memory for what stays."
        times = f"by the plan a layer computes for {brief(computes)} and reads for {brief(reads)}"
        enough = ceil(n * reads / computes)
        if "n_batches" in plan.get("as_set", ()):
            return f"n_batches={n} is too small: {times}, so that it would take {enough} batches to hide it."
        return f"{times.capitalize()}: {enough} batches instead of {n} would hide it, had they room in memory."

    def _span(self, lane: str, span: Span) -> None:
        self._keep(self.lanes.setdefault(lane, Lane()), span)
        if lane != "compute":
            if span.expert >= 0:
                arrivals = self.arrivals[span.layer]
                arrivals[span.expert] = arrivals.get(span.expert, 0) + 1
            return
        if span.kind == "expert":
            tokens = self.tokens[span.layer]
            for expert, count in span.parts or ((span.expert, span.tokens),) * (span.expert >= 0):
                tokens[expert] = tokens.get(expert, 0) + count
        if span.batch >= 0 and span.kind in STAGES:
            # Where the cores look at keys and values, attention goes on when the compute lane has asked for it.
            is_asked = span.kind == "attention" and "cores" in self.lanes
            self.stages[span.batch] = "attention" if is_asked else STAGES[span.kind], span.layer
        elif span.kind in ("gather", "expert", "combine", "score"):
            self.phase = ("scoring" if span.kind == "score" else "experts"), span.layer

    def _keep(self, lane: Lane, span: Span) -> None:
        lane.spans.append(span)
        lane.seconds += span.seconds
        lane.nbytes += span.nbytes
        self.active = max(self.active, span.end)
        self.now = max(self.now, span.end)

    def _sweep(self, event: Mapping[str, Any]) -> None:
        begin, end = float(event["begin"]), float(event["end"])
        self.sweeps.append(dict(event))
        self.num_sweeps += 1
        self.sweep_seconds += end - begin
        self.output_tokens += int(event.get("output_tokens", 0))
        self.prompt_tokens += int(event.get("prefill_tokens", 0))
        self.now = max(self.now, end)
        if len(self.stages) > 4 * max(1, int(event.get("batches", 1))):  # those that have ended
            kept = sorted(self.stages)[-int(event.get("batches", 1)) :]
            self.stages = {batch: self.stages[batch] for batch in kept}

    def _look(self, event: Mapping[str, Any]) -> None:
        self.now = max(self.now, float(event["time"]))
        for name, (count, nbytes) in event.get("waiting", {}).items():
            self.lanes.setdefault(name, Lane()).waiting = int(count), int(nbytes)
        self.wanted = {str(why): int(count) for why, count in event.get("wanted", {}).items()}
        self.memory.append((float(event["time"]), int(event.get("memory", 0))))
        self.prefetch = int(event.get("requested", 0)), int(event.get("used", 0))
        self.requests = int(event.get("requests", 0))


def read_span(event: Mapping[str, Any]) -> Span:
    """What an event says of a span, or of several that were summed up."""
    begin, end = float(event["begin"]), float(event["end"])
    return Span(
        begin,
        end,
        float(event.get("seconds", end - begin)),
        str(event["kind"]),
        int(event["layer"]),
        int(event.get("expert", -1)),
        int(event.get("batch", -1)),
        int(event.get("bytes", 0)),
        int(event.get("tokens", 0)),
        int(event.get("count", 1)),
        tuple((int(expert), int(tokens)) for expert, tokens in event.get("parts", ())),
    )


def share(spans: Iterator[Span], begin: float, end: float) -> float:
    """How much of a time spans take."""
    if end <= begin:
        return 0.0
    taken = 0.0
    for span in spans:
        if span.begin >= begin and span.end <= end:  # as most do
            taken += span.seconds
            continue
        overlap = min(span.end, end) - max(span.begin, begin)
        taken += overlap * (span.seconds / (span.end - span.begin) if span.end > span.begin else 0.0)
    return min(1.0, taken / (end - begin))
