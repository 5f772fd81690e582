"""Lines of `events.jsonl` as what they tell: docs/events.md, with bounds on every number.

A line is understood as a whole or not at all, so that nothing is half applied.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

__all__ = [
    "DamagedError",
    "Event",
    "Operation",
    "Standing",
    "Sum",
    "Sweep",
    "Wait",
    "Waits",
    "ends",
    "read_line",
]

Time = Annotated[float, Meta(ge=0.0, le=1e10)]
Amount = Annotated[int, Meta(ge=0, le=1 << 62)]
Number = Annotated[int, Meta(ge=-1, le=10_000)]
Batch = Annotated[int, Meta(ge=-1, le=10**9)]
Word = Annotated[str, Meta(max_length=40)]
Counts = Annotated[list[Annotated[list[Amount], Meta(max_length=10_000)]], Meta(max_length=10_000)]
ByLane = Annotated[dict[Word, Time], Meta(max_length=16)]
AmountByLane = Annotated[dict[Word, Amount], Meta(max_length=16)]
Parts = Annotated[tuple[tuple[Number, Amount], ...], Meta(max_length=10_000)]


class DamagedError(ValueError):
    """A line that is no JSON object, or not what its event should be."""


class Operation(msgspec.Struct, tag_field="event", tag="span", gc=False):
    """A span."""

    lane: Word
    kind: Word
    layer: Number
    begin: Time
    end: Time
    expert: Number = -1
    batch: Batch = -1
    bytes: Amount = 0
    tokens: Amount = 0
    parts: Parts = ()


class Wait(Operation, tag="bubble", gc=False):
    """A bubble."""


class Sum(msgspec.Struct, tag_field="event", tag="spans", gc=False):
    """Spans that were summed up."""

    lane: Word
    kind: Word
    layer: Number
    begin: Time
    end: Time
    seconds: Time
    count: Amount
    bytes: Amount = 0
    tokens: Amount = 0


class Waits(Sum, tag="bubbles", gc=False):
    """Bubbles that were."""


class Sweep(msgspec.Struct, tag_field="event", tag="sweep"):
    """A sweep that has ended."""

    begin: Time
    end: Time
    index: Amount = 0
    batches: Amount = 0
    prefill_tokens: Amount = 0
    decode_tokens: Amount = 0
    output_tokens: Amount = 0
    cache_bytes: Amount = 0
    flops: Amount = 0
    busy: ByLane = {}
    bytes: AmountByLane = {}
    bubble: Time = 0.0
    requests: Amount = 0
    requested: Amount = 0
    used: Amount = 0
    tokens: Counts = []
    arrivals: Counts = []


class Standing(msgspec.Struct, tag_field="event", tag="state"):
    """How things stand."""

    time: Time
    waiting: Annotated[dict[Word, tuple[Amount, Amount]], Meta(max_length=16)] = {}
    wanted: AmountByLane = {}
    memory: Amount = 0
    requested: Amount = 0
    used: Amount = 0
    requests: Amount = 0
    busy: ByLane = {}
    bytes: AmountByLane = {}
    bubble: Time = 0.0
    batches: Annotated[list[tuple[Batch, Word, Number]], Meta(max_length=10_000)] = []


Event = Operation | Wait | Sum | Waits | Sweep | Standing

KNOWN = ("span", "bubble", "spans", "bubbles", "sweep", "state")
to_event = msgspec.json.Decoder(Event)
to_anything = msgspec.json.Decoder()


def read_line(line: bytes) -> Event | None:
    """What a line tells; None for an event of a kind that nobody here knows, which newer versions may have.

    Raises:
        DamagedError: it tells nothing.
    """
    try:
        event: Event = to_event.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if is_unknown(line):
            return None
        raise DamagedError from error
    if not isinstance(event, Standing) and event.end < event.begin:
        raise DamagedError
    return event


def is_unknown(line: bytes) -> bool:
    """Whether a line is an event, but of a kind that is not known."""
    try:
        content: Any = to_anything.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    if not isinstance(content, dict):
        return False
    kind = content.get("event")
    return isinstance(kind, str) and kind not in KNOWN


def ends(event: Event) -> float:
    """When an event was over."""
    return event.time if isinstance(event, Standing) else event.end
