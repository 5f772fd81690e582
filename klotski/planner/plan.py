"""The plan: n, batch size, slots and residents within the budget.

As many sequences as fit are taken into the group, because every sweep moves the same weights
however many there are; they leave at least the slots that streaming needs. What is left holds
more slots, up to what a layer can use ahead, and then blocks that stay for the whole run.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from klotski.core import Block, Residents
from klotski.errors import BudgetError
from klotski.planner.facts import Demand, ModelFacts
from klotski.units import format_size

__all__ = ["Plan", "make_plan"]

LARGEST_BATCH = 64  # sequences; beyond, more batches hide transfers better than larger ones
MOST_BATCHES = 16  # the paper's largest group has 15
FEWEST_BATCHES = 4  # a workload of a few prompts is still cut into so many
EXPERT_SLOTS = 2  # one is computed from while the other is filled
DENSE_SLOTS = 2


@dataclass(frozen=True)
class Plan:
    """What was decided. `memory`: bytes of the device tier by use; they sum to at most `budget`."""

    n_batches: int
    batch_size: int
    budget: int
    budget_reason: str
    memory: dict[str, int]
    dense_slots: int
    expert_slots: int
    hot_experts: int
    residents: tuple[Block, ...]
    streamed_bytes: int  # of all blocks that do not stay: the most that one sweep moves

    def as_dict(self) -> dict[str, Any]:
        """The content of `plan.json`."""
        plan = asdict(self)
        plan["residents"] = [str(block) for block in self.residents]
        return plan


def make_plan(
    facts: ModelFacts,
    demand: Demand,
    budget: tuple[int, str],
    n_batches: int | None,
    batch_size: int | None,
    hot_experts: int | None,
    residents: Residents,
) -> Plan:
    """The plan for a workload within a budget (bytes, and why so many); None leaves a choice open.

    Raises:
        BudgetError: no plan fits; the message says which budget would do.
    """
    choices = list(group_sizes(len(demand.lengths), n_batches, batch_size))
    needs = {choice: least_memory(facts, demand, *choice) for choice in choices}
    fitting = [choice for choice in choices if sum(needs[choice].values()) <= budget[0]]
    if not fitting:
        raise too_small(min((sum(need.values()), choice) for choice, need in needs.items()), budget, facts)
    n, size = max(fitting, key=lambda choice: worth(choice[0], choice[1], len(demand.lengths)))
    memory = needs[n, size]
    left = budget[0] - sum(memory.values())
    hot = min(hot_experts or facts.top_k, max(facts.expert_counts))

    expert = facts.largest(dense=False)
    useful = min(max(facts.expert_counts), EXPERT_SLOTS + 2 * hot)
    more = max(0, min(useful - EXPERT_SLOTS, left // expert))
    memory["expert_slots"] += more * expert
    left -= more * expert
    stay = tuple(choose_residents(facts, left)) if residents is Residents.greedy else ()
    memory["residents"] = sum(facts.block_bytes[block] for block in stay)
    streamed = sum(size for block, size in facts.block_bytes.items() if block not in set(stay))
    return Plan(n, size, budget[0], budget[1], memory, DENSE_SLOTS, EXPERT_SLOTS + more, hot, stay, streamed)


def group_sizes(requests: int, n_batches: int | None, batch_size: int | None) -> Iterator[tuple[int, int]]:
    """Candidates for (n, batch size)."""
    wanted = max(1, -(-requests // (n_batches or FEWEST_BATCHES)))
    sizes = [batch_size] if batch_size else list(range(1, min(wanted, LARGEST_BATCH) + 1))
    counts = [n_batches] if n_batches else list(range(1, MOST_BATCHES + 1))
    yield from product(counts, sizes)


def worth(n_batches: int, batch_size: int, requests: int) -> tuple[int, int, int]:
    """How good a group is: the most sequences; of equals, enough batches to hide behind; then large ones."""
    return min(n_batches * batch_size, requests), min(n_batches, FEWEST_BATCHES), batch_size


def least_memory(facts: ModelFacts, demand: Demand, n_batches: int, batch_size: int) -> dict[str, int]:
    """Bytes by use of the smallest plan for a group: no residents, and as few slots as streaming needs."""
    context, in_flight = demand.tokens(n_batches, batch_size)
    return {
        "fixed": facts.fixed_bytes,
        "staging": facts.staging_bytes,
        "dense_slots": DENSE_SLOTS * facts.largest(dense=True),
        "expert_slots": EXPERT_SLOTS * facts.largest(dense=False),
        "kv_cache": context * facts.kv_bytes,
        "activations": in_flight * facts.activation_bytes + batch_size * facts.logits_bytes,
        "residents": 0,
    }


def choose_residents(facts: ModelFacts, room: int) -> Iterator[Block]:
    """Blocks that fit into `room`: dense parts first, then experts spread evenly over the layers.

    Every sweep uses every dense part, so a byte spent there saves a byte in each; evenly, because
    a layer that is here while the next is not gives the disk nothing to hide behind.
    """
    for block in sorted(facts.block_bytes, key=lambda block: (block.expert, block.layer)):
        if facts.block_bytes[block] <= room:
            room -= facts.block_bytes[block]
            yield block


def too_small(smallest: tuple[int, tuple[int, int]], budget: tuple[int, str], facts: ModelFacts) -> BudgetError:
    """The refusal, with a budget that would do."""
    need, (n, size) = smallest
    # Rounded up, and never to the need itself: read back through a float, that may be a byte short.
    return BudgetError(
        f"hw.device_memory={format_size(budget[0])} ({budget[1]}) is too small: slots for the largest blocks "
        f"({format_size(facts.largest(dense=True))} and {format_size(facts.largest(dense=False))}), what belongs to no "
        f"layer, and {n} batch{'es' if n > 1 else ''} of {size} need {format_size(need)}; "
        f"set hw.device_memory={(need // 100_000 + 1) / 10}MB or more"
    )
