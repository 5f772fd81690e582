"""Lanes: what works through operations in order, and the clock they share."""

from klotski.lanes.base import Clock, Event, Lane, Pending, SpanSink
from klotski.lanes.threads import InlineLane, ThreadLane
from klotski.lanes.virtual import VirtualClock, VirtualComputeLane, VirtualLane

__all__ = [
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
]
