"""`metrics.json`: what the run did, in seconds, bytes and fractions of one.

`bound` is the time that the run could not have beaten on this machine: sweep by sweep, what the
busiest of these resources needed, summed.

- The disk: the bytes that the sweep read, at the rate that the run's own reader reaches with nothing
  else going on (`rates.disk`, bytes a second).
- The way into a GPU, where there is one: blocks, and the keys and values that come by it, at the rate of its copies
  (`rates.link`).
- The cores, or the GPU: the multiplications and additions of the sweep's tokens with the weights that they
  meet (attention's projections, router, shared experts, K experts a token, and the head for each
  token that was sampled; padding counts, it is computed), and of attention's scores, for each pair
  that a causal mask leaves, where all layers keep all tokens; at the rate of one large matrix product
  of the experts' own shape (`rates.compute`, operations a second).

These rates are measured before the first sweep and after the last, and the median is taken. A machine may have been
busy with something else meanwhile: where the lane itself reached more while it was busy, or over all sweeps that read
prompts, or over all others, that is the rate, and no sweep needs more of the bound than it took. So no share is above
one. Not counted, so that a run has to pay
for it out of its efficiency: softmax, norms, activations, routing, gathering, sampling, the
interpreter, products of few rows, which are slower, and every wait. What was not computed does not
count either: of a prompt's tokens but the last, the last layer only keeps keys and values.

`efficiency` is the bound divided by the elapsed time, and `decode_efficiency` the same of the sweeps that read no
prompts. A run has phases, which one share over all of it
would hide: prompts are read at the speed of the cores, tokens decoded at that of the disk. `sweeps` therefore
says, of the sweeps that each resource bound: how many, how long they took, the share of that time in which
its own lane was `busy` (a resource that binds should never idle) and in which the compute lane waited
(`bubble`). `prefill_rate` is what the sweeps that read
prompts did, in those operations a second; `prefill_efficiency` divides it by `rates.compute`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from klotski.core import LaneName, PrefetchCount
from klotski.telemetry.recorder import Recorder

__all__ = ["SweepUse", "Totals", "summarize"]


@dataclass
class SweepUse:
    """What one sweep used, and what it was for."""

    seconds: float
    busy: dict[str, float]
    bubble: float
    nbytes: dict[str, int]
    flops: int
    is_prefill: bool
    output_tokens: int

    @property
    def work(self) -> dict[str, int]:
        """What each resource had to do: bytes, operations. Keys and values go the way of blocks."""
        inward = {LaneName.LINK: self.nbytes.get(LaneName.LINK, 0) + self.nbytes.get(LaneName.KV_IN, 0)}
        return {LaneName.DISK: 0} | self.nbytes | inward | {LaneName.COMPUTE: self.flops}

    def worked(self, lane: str) -> float:
        """Seconds in which a resource did so."""
        also = self.busy.get(LaneName.KV_IN, 0.0) if lane == LaneName.LINK else 0.0
        return self.busy.get(lane, 0.0) + also


@dataclass
class Totals:
    """What a run has added up to so far."""

    num_requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    prefetch: Sequence[PrefetchCount] = ()  # by layer
    first_prefetch: PrefetchCount = field(default_factory=PrefetchCount)  # in the first sweep, over all layers
    sweeps: list[SweepUse] = field(default_factory=list)
    peak_memory: dict[str, int] = field(default_factory=dict)
    sampled: dict[str, float] = field(default_factory=dict)  # rates of lanes: measured beside sweeps, or assumed
    plan: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None  # why a run is predicted

    @property
    def rates(self) -> dict[str, float]:
        """What each lane reaches: as sampled, or what the run itself reached where that is more."""
        return {lane: max(rate, self._reached(lane)) for lane, rate in self.sampled.items()}

    def _reached(self, lane: str) -> float:
        """What a lane has proven to reach: while it was busy, and over each phase of the run."""
        busy = sum(sweep.worked(lane) for sweep in self.sweeps)
        reached = [ratio(sum(sweep.work.get(lane, 0) for sweep in self.sweeps), busy)]
        for is_prefill in (True, False):
            phase = [sweep for sweep in self.sweeps if sweep.is_prefill is is_prefill]
            reached.append(ratio(sum(each.work.get(lane, 0) for each in phase), sum(each.seconds for each in phase)))
        return max(reached)

    @property
    def between(self) -> float:
        """Seconds of all sweeps in which the compute lane neither worked nor waited for a block."""
        idle = sum(each.seconds - each.busy.get(LaneName.COMPUTE, 0.0) - each.bubble for each in self.sweeps)
        return max(0.0, idle)

    def busy_share(self, lane: str) -> float:
        """Of the time of all sweeps, the share in which a lane was at work."""
        return ratio(
            sum(sweep.busy.get(lane, 0.0) for sweep in self.sweeps), sum(sweep.seconds for sweep in self.sweeps)
        )


def summarize(status: str, mode: str, totals: Totals, recorder: Recorder, error: str | None) -> dict[str, Any]:
    """The content of `metrics.json`."""
    elapsed = sum(sweep.seconds for sweep in totals.sweeps)
    prefill = sum(sweep.seconds for sweep in totals.sweeps if sweep.is_prefill)
    decode = elapsed - prefill
    decoded = sum(sweep.output_tokens for sweep in totals.sweeps if not sweep.is_prefill)
    tokens = totals.prompt_tokens + totals.output_tokens
    rates = totals.rates
    prefill_rate = ratio(sum(sweep.flops for sweep in totals.sweeps if sweep.is_prefill), prefill)
    moved = {lane: count for lane, count in recorder.bytes_moved.items() if count}
    return {
        "status": status,
        "error": error,
        "mode": mode,
        "reason": totals.reason,
        "elapsed_time": elapsed,
        "num_requests": totals.num_requests,
        "prompt_tokens": totals.prompt_tokens,
        "output_tokens": totals.output_tokens,
        "total_num_tokens": tokens,
        "requests_per_second": ratio(totals.num_requests, elapsed),
        "tokens_per_second": ratio(tokens, elapsed),
        "output_tokens_per_second": ratio(totals.output_tokens, elapsed),
        "prefill_seconds": prefill,
        "prefill_rate": prefill_rate,
        "prefill_efficiency": ratio(prefill_rate, rates.get(LaneName.COMPUTE, 0.0)),
        "decode_seconds": decode,
        "decode_tokens_per_second": ratio(decoded, decode),
        "num_sweeps": len(totals.sweeps),
        "bytes_moved": moved,
        "bytes_per_sweep": {
            lane: median(sweep.nbytes.get(lane, 0) for sweep in totals.sweeps) for lane in moved if totals.sweeps
        },
        "lane_busy_seconds": dict(recorder.busy_seconds),
        "bubble_fraction": ratio(recorder.bubble_seconds, elapsed),
        "bound": bound_of(totals.sweeps, rates, elapsed),
        "rates": rates,
        "peak_memory": totals.peak_memory,
        "prefetch": summarize_prefetch(totals),
        "plan": totals.plan,
    }


def summarize_prefetch(totals: Totals) -> dict[str, Any]:
    """How prefetching fared: over all layers, in the first sweep (which knows earlier runs alone), by layer."""
    by_layer = [{"layer": layer} | shares(each) for layer, each in enumerate(totals.prefetch)]
    return shares(PrefetchCount.total(totals.prefetch)) | {
        "first_sweep": shares(totals.first_prefetch),
        "layers": by_layer,
    }


def shares(count: PrefetchCount) -> dict[str, Any]:
    """Of the experts sent for, the share that was used; of those held to be hot, the share that truly was."""
    return {
        "requested": count.requested,
        "used": count.used,
        "hit_rate": ratio(count.used, count.requested),
        "named": count.named,
        "among_hottest": ratio(count.among_hottest, count.named),
    }


def bound_of(sweeps: Sequence[SweepUse], rates: Mapping[str, float], elapsed: float) -> dict[str, Any]:
    """The resource that bound most of the run, the seconds of the bound, and how its sweeps fared; see the module."""
    bound_by: dict[str, list[SweepUse]] = defaultdict(list)
    seconds: dict[str, float] = defaultdict(float)
    decoding = 0.0
    for sweep in sweeps:
        needs = {lane: ratio(amount, rates.get(lane, 0.0)) for lane, amount in sweep.work.items()}
        busiest = max(needs, key=lambda lane: needs[lane])
        if needs[busiest]:
            need = min(needs[busiest], sweep.seconds)  # a sweep that took less was above the mean rate
            seconds[busiest] += need
            bound_by[busiest].append(sweep)
            decoding += need * (not sweep.is_prefill)
    total = sum(seconds.values())
    return {
        "resource": max(seconds, key=lambda lane: seconds[lane], default=None),
        "seconds": total,
        "efficiency": ratio(total, elapsed),
        "decode_efficiency": ratio(decoding, sum(sweep.seconds for sweep in sweeps if not sweep.is_prefill)),
        "sweeps": {lane: summarize_sweeps(lane, bound) for lane, bound in bound_by.items()},
    }


def summarize_sweeps(lane: str, sweeps: Sequence[SweepUse]) -> dict[str, Any]:
    """How sweeps fared that one lane bound."""
    elapsed = sum(sweep.seconds for sweep in sweeps)
    return {
        "count": len(sweeps),
        "elapsed_time": elapsed,
        # An operation counts in the sweep in which it ends, and may have begun before.
        "busy": min(1.0, ratio(sum(sweep.busy.get(lane, 0.0) for sweep in sweeps), elapsed)),
        "bubble": min(1.0, ratio(sum(sweep.bubble for sweep in sweeps), elapsed)),
    }


def ratio(part: float, whole: float) -> float:
    """A rate or share; 0 where there is nothing to divide by."""
    return part / whole if whole else 0.0
