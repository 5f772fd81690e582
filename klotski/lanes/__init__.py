"""Lanes: what works through operations in order, and the clock they share."""

from klotski.lanes.base import PIECE, Clock, Event, Lane, Pending, SpanSink
from klotski.lanes.threads import InlineLane, ThreadLane
from klotski.lanes.virtual import ASLEEP, VirtualClock, VirtualComputeLane, VirtualLane, VirtualWire

__all__ = [
    "ASLEEP",
    "PIECE",
    "Clock",
    "Event",
    "InlineLane",
    "Lane",
    "Pending",
    "SpanSink",
    "ThreadLane",
    "VirtualClock",
    "VirtualComputeLane",
    "VirtualLane",
    "VirtualWire",
]
