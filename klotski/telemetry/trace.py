"""`trace.json`: the run's events in Chrome's trace format, which Perfetto opens.

One track for each lane, and one for the bubbles of the compute lane. Source of the format:
https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from klotski.core import DENSE
from klotski.telemetry.events import BubbleEvent, BubblesEvent, Event, SpanEvent, SpansEvent, StateEvent, SweepEvent

__all__ = ["write_trace"]

BUBBLES = "bubbles"
TRACKS = ("compute", BUBBLES, "cores", "kv_in", "link", "kv_out", "disk", "sweeps")  # from top to bottom; others follow
MOST = 300_000  # events: what more of them show is more of the same, and no viewer scrolls through it


def write_trace(events: Path, trace: Path, mode: str = "measured") -> bool:
    """Turn `events.jsonl` into `trace.json`, line by line, as far as a viewer can follow; whether that was all.

    `mode`: of the run; one that was not measured is called so above its tracks.
    """
    process = "klotski" if mode == "measured" else f"klotski, {mode}"
    decoder = msgspec.json.Decoder(Event)
    tracks: dict[str, int] = {}
    with events.open("rb") as lines, trace.open("wb") as out:
        out.write(b'{"displayTimeUnit":"ms","traceEvents":[\n')
        out.write(msgspec.json.encode({"ph": "M", "pid": 1, "name": "process_name", "args": {"name": process}}))
        encode = msgspec.json.Encoder().encode
        out.writelines(
            b",\n" + encode(entry) for line in islice(lines, MOST) for entry in entries(decoder.decode(line), tracks)
        )
        out.write(b"\n]}\n")
        return next(lines, None) is None


class Entry(msgspec.Struct, tag_field="ph", tag="X", gc=False):
    """A bar on a track; there are far more of these than of all else. Times in microseconds."""

    tid: int
    name: str
    ts: float
    dur: float
    args: dict[str, float]
    pid: int = 1


def entries(event: Event, tracks: dict[str, int]) -> Iterator[Entry | dict[str, Any]]:
    """The trace entries of one event, with the track's name before its first use."""
    args: dict[str, float]
    match event:
        case BubbleEvent():  # most are of this kind, or of the next
            track, name = BUBBLES, f"wait for {label(event)}"
            args = {"layer": event.layer}
        case SpanEvent():
            track, name = event.lane, label(event)
            args = {"layer": event.layer, "bytes": event.bytes, "tokens": event.tokens}
        case StateEvent():
            for lane, (operations, _) in event.waiting.items():
                yield {
                    "ph": "C",
                    "pid": 1,
                    "name": f"waiting for {lane}",
                    "ts": round(event.time * 1e6, 3),
                    "args": {"operations": operations},
                }
            return
        case SweepEvent():
            track, name = "sweeps", f"sweep {event.index}"
            args = {
                "batches": event.batches,
                "prefill_tokens": event.prefill_tokens,
                "decode_tokens": event.decode_tokens,
            }
        case BubblesEvent():
            track, name = BUBBLES, f"{event.count} waits for L{event.layer} {event.kind}"
            args = {"layer": event.layer, "seconds": event.seconds}
        case SpansEvent():
            track, name = event.lane, f"L{event.layer} {event.kind}, {event.count} times"
            args = {
                "layer": event.layer,
                "seconds": event.seconds,
                "bytes": event.bytes,
                "tokens": event.tokens,
            }
    if track not in tracks:
        tracks[track] = TRACKS.index(track) if track in TRACKS else len(TRACKS) + len(tracks)
        for kind, value in (
            ("thread_name", {"name": track}),
            ("thread_sort_index", {"sort_index": tracks[track]}),
        ):
            yield {"ph": "M", "pid": 1, "tid": tracks[track], "name": kind, "args": value}
    begin, end = event.begin * 1e6, event.end * 1e6
    yield Entry(tracks[track], name, round(begin, 3), round(end - begin, 3), args)


def label(event: SpanEvent) -> str:
    """What an operation is called on its track."""
    if event.parts:
        return f"L{event.layer} {event.kind}, {len(event.parts)} at once"
    expert = f" {event.expert}" if event.expert != DENSE else ""
    batch = f" batch {event.batch}" if event.batch >= 0 else ""
    return f"L{event.layer} {event.kind}{expert}{batch}"
