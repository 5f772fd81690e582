"""What the panels show, as one snapshot that events move on. Bounded, however long the run."""

from collections import defaultdict, deque
from copy import copy
from typing import NamedTuple

from monitor.curve import Curve
from monitor.events import Event, Operation, Standing, Sum, Sweep, Wait, Waits
from monitor.lane import Lane, Span, span_of

__all__ = ["State"]

SWEEPS = 2000  # that are kept
WORKS = 512  # sweeps, or neighbours together, of which is kept what they had to do
LANES = 16  # more are garbage
KINDS = 16  # of operations that compute waits for, likewise
STAGES = {  # of a batch, by the operation of it that ended last
    "start": "waiting",
    "attention": "router",
    "project": "router",
    "finish": "done",
    "sample": "waiting",
}
PHASES = {"gather": "experts", "expert": "experts", "answer": "experts", "combine": "experts", "score": "scoring"}

Counts = dict[int, dict[int, int]]
"""Of each layer, of each expert."""


class Stage(NamedTuple):
    """Where a batch is: since when, in the run's clock."""

    name: str
    layer: int
    since: float


class PastSweep(NamedTuple):
    """What is kept of a sweep."""

    begin: float
    end: float
    output_tokens: int
    batches: int
    cache_bytes: int
    flops: int


class Work(NamedTuple):
    """What a sweep, or a few that follow each other, had to do: bytes of each lane, operations of `compute`."""

    seconds: float
    amounts: dict[str, int]


class State:
    """Everything that a run has told so far."""

    def __init__(self) -> None:
        self.now = 0.0  # seconds of the run's clock that it has told of
        self.active = 0.0  # when the last thing that it told of ended on a lane
        self.origin: float | None = None  # when sweeps began, once one has ended
        self.lanes: dict[str, Lane] = {}
        self.below: frozenset[str] = frozenset()  # what the cores compute where it lies: `attention`, `expert`
        self.bubbles = Lane()
        self.reasons: dict[str, Curve] = {}  # of bubbles, by the kind of the operation that waited
        self.gaps: deque[tuple[float, float]] = deque(maxlen=SWEEPS)  # times of which only sums are told
        self.stages: dict[int, Stage] = {}  # of each batch
        self.phase: tuple[str, int] = ("waiting", 0)  # of the group
        self.sweeps: deque[PastSweep] = deque(maxlen=SWEEPS)
        self.works: list[Work] = []
        self.num_sweeps = 0
        self.sweep_seconds = 0.0
        self.output_tokens = 0
        self.prompt_tokens = 0
        self.tokens: Counts = defaultdict(dict)
        self.came: dict[str, Counts] = {}  # by lane: how often each expert did
        self.wanted: dict[str, int] = {}
        self.memory = 0  # bytes of the process; 0: not told
        self.requests = 0
        self.prefetch = (0, 0)  # guesses that were sent for, and used
        self._marked = 0.0  # when lanes were last settled
        self._moved: dict[str, int] = {}  # by lane, up to the last sweep

    def fork(self) -> "State":
        """The same, to go on from without changing this one."""
        other = copy(self)
        other.below = self.below
        other.lanes = {name: lane.fork() for name, lane in self.lanes.items()}
        other.bubbles = self.bubbles.fork()
        other.reasons = {kind: curve.fork() for kind, curve in self.reasons.items()}
        other.stages, other.wanted, other.works = dict(self.stages), dict(self.wanted), list(self.works)
        other.sweeps, other.gaps = self.sweeps.copy(), self.gaps.copy()
        other.tokens = copy_of(self.tokens)
        other.came = {lane: copy_of(counts) for lane, counts in self.came.items()}
        return other

    def apply(self, event: Event) -> None:
        """Move on by an event."""
        match event:
            case Wait() | Waits():
                self._wait(span_of(event))
            case Operation() | Sum():
                self._span(event.lane, span_of(event))
            case Sweep():
                self._sweep(event)
            case Standing():
                self._stand(event)

    @property
    def arrivals(self) -> Counts:
        """How often each expert came to where arithmetic happens."""
        return self.came.get("link") or self.came.get("disk") or {}

    @property
    def rate(self) -> float:
        """Output tokens a second over all sweeps."""
        return self.output_tokens / self.sweep_seconds if self.sweep_seconds else 0.0

    @property
    def rate_now(self) -> float:
        """Output tokens a second over the last sweeps."""
        last = list(self.sweeps)[-8:]
        seconds = sum(each.end - each.begin for each in last)
        return sum(each.output_tokens for each in last) / seconds if seconds > 0 else 0.0

    @property
    def last_sweep(self) -> tuple[float, float]:
        """Begin and end of the last one; what has been told, if none has ended."""
        return (self.sweeps[-1].begin, self.sweeps[-1].end) if self.sweeps else (0.0, self.now)

    @property
    def bubble_fraction(self) -> float:
        """The share of all sweeps in which compute waited."""
        return self.bubbles.seconds / self.sweep_seconds if self.sweep_seconds else 0.0

    @property
    def is_in_detail(self) -> bool:
        """Whether what happens now is told operation by operation, or in sums of a layer."""
        return not self.gaps or self.gaps[-1][1] < self._marked

    @property
    def attending(self) -> tuple[int, int] | None:
        """The batch that the compute lane is at, and its layer, while batches go through attention one by one."""
        lane = self.lanes.get("compute")
        last = lane.spans[-1] if lane and lane.spans else None
        if last is None or last.batch not in self.stages:
            return None
        if last.kind in ("attention", "project"):
            behind = (batch for batch, stage in self.stages.items() if stage.name in ("waiting", "done"))
            batch = min(behind, default=None)
            return None if batch is None else (batch, last.layer)
        name, layer, _ = self.stages[last.batch]
        if any(stage.name != name or (name == "done" and stage.layer != layer) for stage in self.stages.values()):
            return None
        return min(self.stages), (layer + 1 if name == "done" else 0)

    def lane(self, name: str) -> Lane:
        """The lane of a name; one beyond all that there can be is nobody's."""
        if name in self.lanes or len(self.lanes) < LANES:
            return self.lanes.setdefault(name, Lane())
        return Lane()

    def _span(self, name: str, span: Span) -> None:
        self.lane(name).add(span)
        self._reach(span.end)
        if name not in ("compute", "cores"):
            if span.expert >= 0:
                count(self.came.setdefault(name, defaultdict(dict)), span.layer, span.expert, 1)
            return
        if span.kind == "expert":
            for expert, tokens in span.parts or ((span.expert, span.tokens),) * (span.expert >= 0):
                count(self.tokens, span.layer, expert, tokens)
        if name == "cores":
            self.below |= {span.kind} & {"attention", "expert"}
        elif span.number == 1:
            self._at_work(span.batch, span.kind, span.layer, span.end)

    def _at_work(self, batch: int, kind: str, layer: int, moment: float) -> None:
        """A batch, or the group, has done something."""
        if batch >= 0 and kind in STAGES:
            # Where the cores look at keys and values, attention goes on when the compute lane has asked for it.
            is_asked = kind == "attention" and "attention" in self.below
            self.stages[batch] = Stage("attention" if is_asked else STAGES[kind], layer, moment)
        elif kind in PHASES:
            self.phase = PHASES[kind], layer

    def _wait(self, span: Span) -> None:
        self.bubbles.add(span)
        kind = span.kind if span.kind in self.reasons or len(self.reasons) < KINDS else ""
        self.reasons.setdefault(kind, Curve()).add(span.begin, span.end, span.seconds, 0)
        self._reach(span.end)

    def _reach(self, moment: float) -> None:
        self.active = max(self.active, moment)
        self.now = max(self.now, moment)

    def _sweep(self, event: Sweep) -> None:
        if self.origin is None:
            self._begin(event)
        self._settle(event, event.end)
        self.num_sweeps += 1
        self.sweep_seconds += event.end - event.begin
        self.output_tokens += event.output_tokens
        self.prompt_tokens += event.prefill_tokens
        if event.tokens or event.arrivals:
            self.tokens = by_layer(event.tokens)
            self.came = {"link" if "link" in self.lanes else "disk": by_layer(event.arrivals)}
        if event.busy:
            self._note_work(event)
        about = (event.output_tokens, event.batches, event.cache_bytes, event.flops)
        self.sweeps.append(PastSweep(event.begin, event.end, *about))
        self._note(event)
        self.stages = {batch: stage for batch, stage in self.stages.items() if stage.since > event.begin}
        self._reach(event.end)

    def _begin(self, event: Sweep) -> None:
        """The first sweep has ended: what came before it was to load what stays."""
        self.origin = self._marked = event.begin
        for lane in (*self.lanes.values(), self.bubbles):
            lane.begin(event.begin)

    def _stand(self, event: Standing) -> None:
        self.now = max(self.now, event.time)
        for name, waiting in event.waiting.items():
            self.lane(name).waiting = waiting
        self.wanted, self.memory = event.wanted, event.memory
        self._note(event)
        if event.batches:
            self.stages = {}
        for batch, kind, layer in event.batches:
            self._at_work(batch, kind, layer, event.time)
        if self.origin is not None:
            self._settle(event, event.time)

    def _note(self, event: Sweep | Standing) -> None:
        """What is counted by both; an older klotski leaves it out of one."""
        self.requests = max(self.requests, event.requests)
        self.prefetch = max(self.prefetch, (event.requested, event.used))

    def _settle(self, event: Sweep | Standing, moment: float) -> None:
        """Lanes have done so much by now: what operations do not say lies since the last time."""
        begin = self._marked
        if not event.busy or moment <= begin:
            return
        lost = [
            self.lane(name).settle(seconds, event.bytes.get(name, 0), begin, moment)
            for name, seconds in event.busy.items()
        ]
        if self.bubbles.settle(event.bubble, 0, begin, moment) or any(lost):
            if self.gaps and self.gaps[-1][1] >= begin:
                begin = self.gaps.pop()[0]
            self.gaps.append((begin, moment))
            self.active = max(self.active, moment)
        self._marked = moment

    def _note_work(self, event: Sweep) -> None:
        moved = {name: total - self._moved.get(name, 0) for name, total in event.bytes.items()}
        self._moved = event.bytes
        self.works.append(Work(event.end - event.begin, {"disk": 0} | moved | {"compute": event.flops}))
        if len(self.works) > WORKS:
            last = self.works.pop() if len(self.works) % 2 else None
            pairs = zip(self.works[::2], self.works[1::2], strict=True)
            self.works = [both(one, two) for one, two in pairs] + ([last] if last else [])


def both(one: Work, two: Work) -> Work:
    """Two together."""
    names = one.amounts | two.amounts
    amounts = {name: one.amounts.get(name, 0) + two.amounts.get(name, 0) for name in names}
    return Work(one.seconds + two.seconds, amounts)


def count(counts: Counts, layer: int, expert: int, more: int) -> None:
    """Add to an expert's number."""
    experts = counts[layer]
    experts[expert] = experts.get(expert, 0) + more


def by_layer(table: list[list[int]]) -> Counts:
    """A table of layers as it is kept."""
    rows = {layer: {expert: number for expert, number in enumerate(row) if number} for layer, row in enumerate(table)}
    return defaultdict(dict, {layer: row for layer, row in rows.items() if row})


def copy_of(counts: Counts) -> Counts:
    """The same, to be changed."""
    return defaultdict(dict, {layer: dict(experts) for layer, experts in counts.items()})
