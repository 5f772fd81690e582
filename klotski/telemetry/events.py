"""The lines of `events.jsonl`.

Each is a JSON object with `event`: `span` (an operation on a lane), `bubble` (the compute lane waited for this
operation's block), `spans` and `bubbles` (sums of these), `sweep`, or `state` (how things stand, for who looks on).
Times are seconds since the run's clock started, which `run.json` gives as wall-clock time. Fields at their default are
left out.
"""

import msgspec

from klotski.core import DENSE

__all__ = [
    "BubbleEvent",
    "BubblesEvent",
    "Counts",
    "Event",
    "SpanEvent",
    "SpansEvent",
    "StateEvent",
    "SweepEvent",
]

Counts = tuple[tuple[int, ...], ...]
"""Of each layer, a number for each expert; nothing for a layer without, and for experts behind the last with one."""


class SpanEvent(msgspec.Struct, tag_field="event", tag="span", omit_defaults=True, gc=False):
    """A line for a span. `expert`: -1 for none, or several: `parts`; `batch`: -1 for the whole group."""

    lane: str
    kind: str
    layer: int
    begin: float
    end: float
    expert: int = DENSE
    batch: int = -1
    bytes: int = 0
    tokens: int = 0
    parts: tuple[tuple[int, int], ...] = ()


class BubbleEvent(SpanEvent, tag="bubble", omit_defaults=True, gc=False):
    """A line for a wait of the compute lane; the fields are those of the operation that waited."""


class SpansEvent(msgspec.Struct, tag_field="event", tag="spans", omit_defaults=True, gc=False):
    """A line for a lane's `count` operations of a kind in a layer, which took `seconds` between `begin` and `end`."""

    lane: str
    kind: str
    layer: int
    begin: float
    end: float
    seconds: float
    count: int
    bytes: int = 0
    tokens: int = 0


class BubblesEvent(SpansEvent, tag="bubbles", omit_defaults=True, gc=False):
    """A line for the waits of the compute lane for such operations."""


class StateEvent(msgspec.Struct, tag_field="event", tag="state", omit_defaults=True):
    """A line for how things stand at `time`, for who looks on.

    `waiting`: operations and bytes that each lane has before it; `wanted`: blocks that wait for a slot, by why;
    `memory`: bytes of the process; `requested`, `used`: guesses of the prefetcher so far; `output_tokens`, `requests`:
    given, and done so far. The recorder adds `busy`, `bytes`, `bubble`: what lanes have done since sweeps began; and,
    where operations are not written, `batches`: of each batch (-1: the group), what it did last in this sweep and in
    which layer.
    """

    time: float
    waiting: dict[str, tuple[int, int]]
    wanted: dict[str, int]
    memory: int
    requested: int
    used: int
    output_tokens: int
    requests: int
    busy: dict[str, float] = {}
    bytes: dict[str, int] = {}
    bubble: float = 0.0
    batches: tuple[tuple[int, str, int], ...] = ()


class SweepEvent(msgspec.Struct, tag_field="event", tag="sweep", omit_defaults=True):
    """A line for a sweep; the first fields are those of the report.

    `flops`: operations of its arithmetic. All others are since sweeps began: `busy`, `bytes`, `bubble` of the lanes,
    `requests` that are done, guesses that were `requested` and `used`; now and then `tokens` and `arrivals` of experts.
    """

    index: int
    begin: float
    end: float
    batches: int
    prefill_tokens: int
    decode_tokens: int
    output_tokens: int
    cache_bytes: int
    flops: int = 0
    busy: dict[str, float] = {}
    bytes: dict[str, int] = {}
    bubble: float = 0.0
    requests: int = 0
    requested: int = 0
    used: int = 0
    tokens: Counts = ()
    arrivals: Counts = ()


Event = SpanEvent | BubbleEvent | SpansEvent | BubblesEvent | StateEvent | SweepEvent
