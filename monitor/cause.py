"""Why the compute lane waits, and what the run could not have beaten."""

from collections import defaultdict
from collections.abc import Mapping
from math import ceil
from typing import NamedTuple

from monitor.facts import Facts
from monitor.state import State, Work
from monitor.units import brief, size

__all__ = ["PEAKS", "Bound", "Cause", "find_bound", "find_cause", "measured"]

ENOUGH = 0.05  # of the time; less waiting is not worth a word
SLOW = 0.6  # of what a plan counted on; a disk that others use, too, may well give three quarters
FULL = 0.85  # of the time: a lane that is busy for so long has no more to give
PEAKS = {"disk": "disk", "link": "link", "kv_in": "link", "kv_out": "back", "cores": "below"}
"""Of each lane that moves bytes, the rate that it is held against."""
WANTED = {
    "expert": "experts",
    "attention": "dense parts",
    "project": "attention on the cores",
    "answer": "experts on the cores",
    "": "blocks",
}
"""By the operation that waits, what it waits for."""


class Cause(NamedTuple):
    """Why the compute lane waits, and what could be done about it. `lane`: which one is to blame; "": none."""

    waits: float  # share of the time
    lane: str
    sentence: str


class Bound(NamedTuple):
    """The resource that bound most of the run, and which share of the time it needs at least."""

    resource: str
    seconds: float
    efficiency: float


def find_bound(state: State, rates: Mapping[str, float]) -> Bound | None:
    """Sweep by sweep what the busiest resource needs at its rate, as `metrics.json` has it; None: it is not known.

    A rate that the run itself exceeds is what the run reaches, and no sweep needs more than it took.
    """
    needs: dict[str, float] = defaultdict(float)
    reached = reached_by(state, rates)
    for work in state.works:
        amounts = amounts_of(work)
        each = {name: amount / reached[name] for name, amount in amounts.items() if reached.get(name, 0.0) > 0}
        busiest = max(each, key=each.__getitem__, default="")
        if busiest and each[busiest]:
            needs[busiest] += min(each[busiest], work.seconds)
    elapsed = sum(work.seconds for work in state.works)
    if not needs or not elapsed:
        return None
    seconds = sum(needs.values())
    return Bound(max(needs, key=needs.__getitem__), seconds, seconds / elapsed)


def reached_by(state: State, rates: Mapping[str, float]) -> dict[str, float]:
    """These rates, or what lanes reached while they were busy, where that is more."""
    found = dict(rates)
    for name in rates:
        done = sum(amounts_of(work).get(name, 0.0) for work in state.works)
        lanes = ("link", "kv_in") if name == "link" else (name,)
        busy = sum(state.lanes[lane].seconds for lane in lanes if lane in state.lanes)
        if done and busy > 0:
            found[name] = max(rates[name], done / busy)
    return found


def amounts_of(work: Work) -> dict[str, float]:
    """What each resource had to do: keys and values go the way of blocks."""
    return {**work.amounts, "link": work.amounts.get("link", 0.0) + work.amounts.get("kv_in", 0.0)}


def find_cause(state: State, begin: float, end: float, pipeline: Facts, plan: Facts) -> Cause:
    """Why compute waited between two times. `pipeline`, `plan`: the run's own, as far as they are known."""
    waits = state.bubbles.busy(begin, end)
    busy = {name: lane.busy(begin, end) for name, lane in state.lanes.items()}
    works = busy.pop("compute", 0.0)
    if not waits and not works:
        return Cause(waits, "", "Nothing is computed: the run loads, or plans, or has ended.")
    if waits < ENOUGH:
        return Cause(waits, "compute", "The compute lane hardly waits: arithmetic sets the pace.")
    what = waits_for(state, begin, end)
    busiest = max(busy, key=busy.__getitem__, default="")
    used = busy.get(busiest, 0.0)
    if used >= FULL:
        lead = f"Compute waits for {what} while {busiest} never rests ({used:.0%} busy): {busiest} sets the pace. "
        return Cause(waits, busiest, lead + remedy(state, busiest, begin, end, plan))
    late = [
        f"{key}={pipeline.text(key)}" for key in ("prefetch", "on_demand") if pipeline.text(key) in ("none", "lazy")
    ]
    why = f" ({', '.join(late)})" if late else ""
    return Cause(
        waits,
        "",
        f"Compute waits for {what} while {busiest or 'every lane'} is busy for {used:.0%} only: blocks are sent "
        f"for too late{why}, or there are too few slots for them.",
    )


def measured(plan: Facts) -> dict[str, float]:
    """The rates of a plan that were measured on the run's machine: against others nothing can be held."""
    rates, names = plan.numbers("rates"), plan.words("rates", "measured")
    return {name: rate for name, rate in rates.items() if name in names}


def waits_for(state: State, begin: float, end: float) -> str:
    """What most of the waiting was for."""
    reasons = {kind: curve.between(begin, end)[0] for kind, curve in state.reasons.items()}
    kind = max(reasons, key=reasons.__getitem__, default="")
    if not reasons.get(kind):
        return "blocks"
    return WANTED.get(kind, kind)


def remedy(state: State, name: str, begin: float, end: float, plan: Facts) -> str:
    """What could be done about a lane that never rests."""
    if name == "cores" and "expert" in state.below:
        return (
            "They compute experts where these lie, and were to end with the link: hw.host_compute_rate or "
            "hw.host_product_bandwidth is too high."
        )
    of_plan = PEAKS.get(name, name)
    rate, expected = state.lanes[name].rate(begin, end), plan.number("rates", of_plan)
    if expected and 0 < rate < SLOW * expected:
        why = ": something slows it" if of_plan in measured(plan) else ", which was not measured on its machine"
        return f"It moves {size(rate)}/s, and the plan counted on {size(expected)}/s{why}."
    n, layer = plan.number("n_batches"), plan.group("conditions", "7")
    computes, reads = layer.amount("compute"), layer.amount("transfer")
    if n is None or not 0 < computes < reads:
        return "More sequences for each arrival (n_batches, batch_size) would help, or more memory for what stays."
    times = f"by the plan a layer computes for {brief(computes)} and reads for {brief(reads)}"
    enough = ceil(min(n * reads / computes, 1e9))
    if "n_batches" in plan.words("as_set"):
        return f"n_batches={n:.0f} is too small: {times}, so that it would take {enough} batches to hide it."
    return f"{times.capitalize()}: {enough} batches instead of {n:.0f} would hide it, had they room in memory."
