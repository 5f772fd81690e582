"""`metrics.json`: what the run did, in seconds, bytes and fractions of one.

`bound` is the time that the run could not have beaten at the rates that its own lanes reached:
sweep by sweep, the busier of the disk (the sweep's bytes at the run's median rate of reading) and
the compute lane (its operations' own time), summed. It leaves out what the machine could do
beyond these rates, so `efficiency` measures the schedule: how much of the elapsed time the
busiest resource was busy.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from klotski.core import LaneName
from klotski.telemetry.recorder import Recorder

__all__ = ["SweepUse", "Totals", "summarize"]


@dataclass
class SweepUse:
    """What one sweep used, and what it was for."""

    seconds: float
    busy: dict[str, float]
    nbytes: dict[str, int]
    is_prefill: bool
    output_tokens: int


@dataclass
class Totals:
    """What a run has added up to so far."""

    num_requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    prefetch_requested: int = 0
    prefetch_used: int = 0
    sweeps: list[SweepUse] = field(default_factory=list)
    peak_memory: dict[str, int] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)


def summarize(status: str, mode: str, totals: Totals, recorder: Recorder, error: str | None) -> dict[str, Any]:
    """The content of `metrics.json`."""
    elapsed = sum(sweep.seconds for sweep in totals.sweeps)
    prefill = sum(sweep.seconds for sweep in totals.sweeps if sweep.is_prefill)
    decode = elapsed - prefill
    decoded = sum(sweep.output_tokens for sweep in totals.sweeps if not sweep.is_prefill)
    tokens = totals.prompt_tokens + totals.output_tokens
    resource, bound = bound_of(totals.sweeps)
    return {
        "status": status,
        "error": error,
        "mode": mode,
        "elapsed_time": elapsed,
        "num_requests": totals.num_requests,
        "prompt_tokens": totals.prompt_tokens,
        "output_tokens": totals.output_tokens,
        "total_num_tokens": tokens,
        "requests_per_second": ratio(totals.num_requests, elapsed),
        "tokens_per_second": ratio(tokens, elapsed),
        "output_tokens_per_second": ratio(totals.output_tokens, elapsed),
        "prefill_seconds": prefill,
        "decode_seconds": decode,
        "decode_tokens_per_second": ratio(decoded, decode),
        "num_sweeps": len(totals.sweeps),
        "bytes_moved": {lane: count for lane, count in recorder.bytes_moved.items() if count},
        "lane_busy_seconds": dict(recorder.busy_seconds),
        "bubble_fraction": ratio(recorder.bubble_seconds, elapsed),
        "bound": {"resource": resource, "seconds": bound, "efficiency": ratio(bound, elapsed)},
        "peak_memory": totals.peak_memory,
        "prefetch": {
            "requested": totals.prefetch_requested,
            "used": totals.prefetch_used,
            "hit_rate": ratio(totals.prefetch_used, totals.prefetch_requested),
        },
        "plan": totals.plan,
    }


def bound_of(sweeps: list[SweepUse]) -> tuple[str | None, float]:
    """The resource that bound most of the run, and the seconds of the bound; see the module."""
    rates = [
        sweep.nbytes[LaneName.DISK] / sweep.busy[LaneName.DISK]
        for sweep in sweeps
        if sweep.busy.get(LaneName.DISK) and sweep.nbytes.get(LaneName.DISK)
    ]
    rate = median(rates) if rates else float("inf")
    seconds: dict[str, float] = defaultdict(float)
    for sweep in sweeps:
        needs = {
            LaneName.COMPUTE: sweep.busy.get(LaneName.COMPUTE, 0.0),
            LaneName.DISK: sweep.nbytes.get(LaneName.DISK, 0) / rate,
        }
        busiest = max(needs, key=lambda lane: needs[lane])
        seconds[busiest] += min(needs[busiest], sweep.seconds)
    if not seconds:
        return None, 0.0
    return max(seconds, key=lambda lane: seconds[lane]), sum(seconds.values())


def ratio(part: float, whole: float) -> float:
    """A rate or share; 0 where there is nothing to divide by."""
    return part / whole if whole else 0.0
