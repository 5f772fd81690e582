"""The plan: n, batch size, tokens of a prefill, slots and residents within the budget.

More sequences share each arrival; more slots let the disk run ahead while attention is computed; what
is left over holds blocks that stay for the whole run, or a cache of experts.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from klotski.core import Block
from klotski.planner.conditions import Conditions, check_conditions
from klotski.planner.costs import Forecast
from klotski.planner.memory import (
    DENSE_SLOTS,
    Candidate,
    host_cache,
    in_flight,
    kv_places,
    lent_slots,
    needed,
    scored_batches,
    window_bytes,
    window_places,
)
from klotski.planner.placement import choose_residents, placement_order, placement_reason
from klotski.planner.rates import Rates
from klotski.planner.search import Appraiser
from klotski.planner.terms import Terms

__all__ = ["Plan", "make_plan"]

WORTH = 1.02  # less of a gain is within what a prediction is off by
CHOICES = ("n_batches", "batch_size", "prefill_tokens", "hot_experts", "expert_slots")  # of a plan, and wishes


@dataclass(frozen=True)
class Plan:
    """What was decided. `memory`: bytes of the device tier by use; they sum to at most `budget`."""

    n_batches: int
    batch_size: int
    prefill_tokens: int  # of all prompts that go through the layers in one sweep, at most
    tokens_in_flight: int  # that go through the layers in one sweep, at most
    budget: int
    budget_reason: str
    memory: dict[str, int]
    host_memory: dict[str, int]  # likewise of the tier below a GPU, and at most `host_budget`
    host_budget: int
    host_budget_reason: str
    dense_slots: int
    expert_slots: int
    cached_slots: int  # of these, a cache: what experts stream through apart
    lent_slots: int  # for experts as well, in the workspace, while no prompts are read
    window_places: int  # for blocks that go through CPU memory from disk to a GPU; 0: none do
    kv_slots: int  # for what a batch keeps of one layer; 0: all keys and values are on the device
    kv_places: int  # in CPU memory, for all that a batch keeps
    attends_below: bool  # those in CPU memory stay there once prompts have been read, and the cores look at them
    hot_experts: int
    scored_batches: int  # whose next tokens are scored at once
    residents: tuple[Block, ...]
    residents_reason: str
    streamed_bytes: int  # that a sweep reads from disk: all blocks that do not stay, if it uses all
    rates: Rates
    forecast: Forecast
    conditions: Conditions
    output_tokens: float  # of all requests, if none ends early
    as_set: tuple[str, ...]  # fields that the config had decided
    growth: Mapping[str, float] = field(default_factory=dict)  # seconds of the run with more of each resource
    explanation: str = ""

    @property
    def sequences(self) -> int:
        """That are given a token in one sweep, at most."""
        return self.tokens_in_flight - self.prefill_tokens

    @property
    def predicted_rate(self) -> float:
        """Output tokens a second that the run is expected to reach."""
        return self.output_tokens / self.forecast.seconds

    @property
    def lasting_memory(self) -> int:
        """Bytes of the device tier that are taken before the first sweep, and kept: all but activations and caches."""
        passing = {"runtime", "activations", "layer_states"} | ({"kv_cache"} if not self.kv_slots else set())
        return sum(nbytes for use, nbytes in self.memory.items() if use not in passing)

    @property
    def next_resource(self) -> str | None:
        """What would bring most, if anything would bring more than a prediction is off by."""
        best = min(self.growth, key=self.growth.__getitem__, default=None)
        return best if best is not None and self.forecast.seconds > WORTH * self.growth[best] else None

    def as_dict(self) -> dict[str, Any]:
        """The content of `plan.json`."""
        plan = {each.name: getattr(self, each.name) for each in fields(self)}
        return plan | {
            "residents": [str(block) for block in self.residents],
            "rates": self.rates._asdict() | {"measured": self.rates.measured},
            "forecast": self.forecast._asdict() | {"sweep": self.forecast.sweep._asdict()},
            "conditions": self.conditions.as_dict(),
            "growth": dict(self.growth),
            "next_resource": self.next_resource,
            "predicted_seconds": self.forecast.seconds,
            "predicted_output_tokens_per_second": self.predicted_rate,
        }


def make_plan(terms: Terms) -> Plan:
    """The plan for a workload within a budget.

    Raises:
        BudgetError: no plan fits; the message says which budget would do.
    """
    appraiser = Appraiser(terms)
    best = appraiser.best()
    facts, wishes = terms.facts, terms.wishes
    memory = needed(terms, best)
    stay = residents(terms, best, terms.budget.nbytes - sum(memory.values()))
    below = host_memory(terms, best, frozenset(stay))
    memory["residents"] = sum(facts.block_bytes[block] for block in stay)
    cached = cached_slots(terms, best, terms.budget.nbytes - sum(memory.values()))
    memory["expert_slots"] += cached * facts.largest_expert
    ahead = best.expert_slots + lent_slots(facts, best.prefill_tokens) - 1
    return Plan(
        n_batches=best.n_batches,
        batch_size=best.batch_size,
        prefill_tokens=best.prefill_tokens,
        tokens_in_flight=in_flight(terms.demand, best),
        budget=terms.budget.nbytes,
        budget_reason=terms.budget.reason,
        memory=memory,
        host_budget=terms.budget.host,
        host_budget_reason=terms.budget.host_reason,
        host_memory=below,
        dense_slots=DENSE_SLOTS,
        expert_slots=best.expert_slots + cached,
        cached_slots=cached,
        lent_slots=lent_slots(facts, best.prefill_tokens),
        window_places=window_places(facts, terms.budget.host) if below.get("window") else 0,
        kv_slots=best.kv_slots,
        kv_places=kv_places(terms, best),
        attends_below=best.attends_below,
        hot_experts=min(wishes.hot_experts or max(facts.top_k, ahead), max(facts.expert_counts)),
        scored_batches=scored_batches(best.batch_size),
        residents=stay,
        residents_reason=placement_reason(facts, wishes),
        streamed_bytes=sum(facts.stored_bytes[block] for block in facts.stored_bytes.keys() - set(stay)),
        rates=terms.rates,
        forecast=appraiser.forecast(best),
        conditions=check_conditions(appraiser, best),
        output_tokens=len(terms.demand.lengths) * terms.demand.output_tokens,
        as_set=tuple(name for name in CHOICES if getattr(wishes, name) is not None),
    )


def residents(terms: Terms, choice: Candidate, room: int) -> tuple[Block, ...]:
    """Blocks that stay for the whole run."""
    facts, wishes = terms.facts, terms.wishes
    if not wishes.keeps_experts and not wishes.caches_experts:
        return ()
    sequences = terms.demand.group(choice.n_batches, choice.batch_size).sequences
    order = placement_order(facts, wishes, sequences)
    return tuple(choose_residents(facts, order, room, with_experts=wishes.keeps_experts))


def host_memory(terms: Terms, choice: Candidate, stay: Collection[Block]) -> dict[str, int]:
    """Bytes of CPU memory below a GPU by use: keys and values, and as many of the blocks that move as it holds."""
    if terms.rates.link is None:
        return {}
    cache = host_cache(terms, choice)
    below = sum(size for block, size in terms.facts.block_bytes.items() if block not in stay)
    room = terms.budget.host - cache
    window = 0 if below <= room else window_bytes(terms.facts, terms.budget.host)
    return {"weights": max(0, min(below, room - window)), "window": window, "kv_cache": cache}


def cached_slots(terms: Terms, choice: Candidate, room: int) -> int:
    """Slots for experts beyond those that they stream through, where these are wished for: no more than experts."""
    if not terms.wishes.caches_experts or terms.wishes.expert_slots:
        return 0
    return max(0, min(room // max(1, terms.facts.largest_expert), terms.facts.num_experts - choice.expert_slots))
