"""On which terms a plan is made: the model, the workload, the budget, what is decided already, the machine."""

from typing import NamedTuple

from klotski.core import Misses, OnDemand, Prefetch, Products, Residents
from klotski.planner.demand import Demand
from klotski.planner.facts import ModelFacts
from klotski.planner.rates import NOMINAL, Rates

__all__ = ["OPEN", "Budget", "Terms", "Wishes"]


class Budget(NamedTuple):
    """Bytes of the device tier, the reason, and what the process takes of them by itself; the host tier's likewise."""

    nbytes: int
    reason: str
    runtime: int = 0
    host: int = 0
    host_reason: str = ""


class Wishes(NamedTuple):
    """What the config has decided already; None leaves a choice open."""

    n_batches: int | None = None
    batch_size: int | None = None
    hot_experts: int | None = None
    prefill_tokens: int | None = None
    residents: Residents = Residents.greedy
    all_stay: bool = False  # there is nothing to stream from
    expert_slots: int | None = None
    prefetch: Prefetch = Prefetch.hot
    on_demand: OnDemand = OnDemand.eager
    products: Products = Products.group
    misses: Misses = Misses.move
    kv_moves: bool | None = None  # from CPU memory below a GPU, and back there
    attends_below: bool | None = None  # once prompts have been read, they stay there, and the cores look at them

    @property
    def keeps_experts(self) -> bool:
        """Whether memory that is left over holds experts for the whole run."""
        return self.all_stay or self.residents in (Residents.greedy, Residents.usage)

    @property
    def caches_experts(self) -> bool:
        """Whether memory that is left over becomes slots, in which experts stay until others need them."""
        return not self.all_stay and self.residents in (Residents.lru, Residents.lfu)


OPEN = Wishes()
"""Nothing is decided yet."""


class Terms(NamedTuple):
    """All that a plan follows from."""

    facts: ModelFacts
    demand: Demand
    budget: Budget
    wishes: Wishes = OPEN
    rates: Rates = NOMINAL
