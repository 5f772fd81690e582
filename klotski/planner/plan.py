"""The plan: n, batch size, tokens of a prefill, slots and residents within the budget.

Every candidate that fits is given its expected time (costs.py), and the fastest wins. More
sequences share each arrival; more slots let the disk run ahead while attention is computed; what
is left over holds blocks that stay for the whole run.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, NamedTuple

from klotski.core import Block, Residents
from klotski.errors import BudgetError
from klotski.planner.costs import BUSY_SLOTS, workload_seconds
from klotski.planner.facts import Demand, Group, ModelFacts
from klotski.units import format_size

__all__ = ["Budget", "Plan", "Wishes", "make_plan"]

SIZES = (*range(1, 128), *range(128, 512, 16), 512)  # of a batch, in sequences
MOST_BATCHES = 16  # the paper's largest group has 15
FEWEST_BATCHES = 4  # a workload of a few prompts is still cut into so many
PREFILL_TOKENS = (16384, 12288, 8192, 6144, 4096, 3072, 2048, 1536, 1024, 768, 512, 256, 128, 64)  # of one sweep
DENSE_SLOTS = 2
PAGE = 4096  # bytes
HEAP = 1.4  # bytes of the heap for each byte in use


class Budget(NamedTuple):
    """Bytes of the device tier, why so many, and what the process takes of them by itself."""

    nbytes: int
    reason: str
    runtime: int = 0


class Wishes(NamedTuple):
    """What the config has decided already; None leaves a choice open."""

    n_batches: int | None = None
    batch_size: int | None = None
    hot_experts: int | None = None
    prefill_tokens: int | None = None
    residents: Residents = Residents.greedy
    all_stay: bool = False  # there is nothing to stream from


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
    dense_slots: int
    expert_slots: int
    lent_slots: int  # for experts as well, in the workspace, while no prompts are read
    hot_experts: int
    residents: tuple[Block, ...]
    streamed_bytes: int  # that a sweep reads from disk: all blocks that do not stay, if it uses all

    @property
    def sequences(self) -> int:
        """That are given a token in one sweep, at most."""
        return self.tokens_in_flight - self.prefill_tokens

    def as_dict(self) -> dict[str, Any]:
        """The content of `plan.json`."""
        plan = asdict(self)
        plan["residents"] = [str(block) for block in self.residents]
        return plan


class Candidate(NamedTuple):
    """One way to spend the budget."""

    n_batches: int
    batch_size: int
    prefill_tokens: int
    expert_slots: int


def make_plan(facts: ModelFacts, demand: Demand, budget: Budget, wishes: Wishes) -> Plan:
    """The plan for a workload within a budget.

    Raises:
        BudgetError: no plan fits; the message says which budget would do.
    """
    choices = list(candidates(facts, demand, wishes))
    needs = {choice: sum(needed(facts, demand, budget, choice).values()) for choice in choices}
    weights = facts.weight_bytes if wishes.all_stay else 0
    fitting = [choice for choice in choices if needs[choice] + weights <= budget.nbytes]
    if not fitting:
        need, least = min((need, choice) for choice, need in needs.items())
        raise too_small(need, least, budget, facts, weights)

    keeps_blocks = wishes.all_stay or wishes.residents is Residents.greedy

    def seconds(choice: Candidate) -> float:
        left = budget.nbytes - needs[choice] if keeps_blocks else 0
        streamed = max(0, facts.weight_bytes - left)
        group = demand.group(choice.n_batches, choice.batch_size)
        slots = choice.expert_slots, lent_slots(facts, choice)
        return workload_seconds(facts, demand, group, choice.prefill_tokens, slots, streamed)

    best = min(fitting, key=lambda choice: (seconds(choice), choice))
    left = budget.nbytes - needs[best]
    stay = tuple(choose_residents(facts, left)) if keeps_blocks else ()
    streamed = facts.stored_bytes.keys() - set(stay)
    ahead = best.expert_slots + lent_slots(facts, best) - 1
    return Plan(
        n_batches=best.n_batches,
        batch_size=best.batch_size,
        prefill_tokens=best.prefill_tokens,
        tokens_in_flight=in_flight(demand, best),
        budget=budget.nbytes,
        budget_reason=budget.reason,
        memory=needed(facts, demand, budget, best) | {"residents": sum(facts.block_bytes[block] for block in stay)},
        dense_slots=DENSE_SLOTS,
        expert_slots=best.expert_slots,
        lent_slots=lent_slots(facts, best),
        hot_experts=min(wishes.hot_experts or max(facts.top_k, ahead), max(facts.expert_counts)),
        residents=stay,
        streamed_bytes=sum(facts.stored_bytes[block] for block in streamed),
    )


def candidates(facts: ModelFacts, demand: Demand, wishes: Wishes) -> Iterator[Candidate]:
    """All combinations that are worth a thought.

    One batch reads its prompts at a time. What several leave in the heap while they wait lies between what they
    have given back, in holes that the C library does not fill.
    """
    requests = len(demand.lengths)
    most = max(1, -(-requests // (wishes.n_batches or FEWEST_BATCHES)))
    sizes = [wishes.batch_size] if wishes.batch_size else sorted({min(most, size) for size in SIZES})
    counts = [wishes.n_batches] if wishes.n_batches else range(1, MOST_BATCHES + 1)
    experts = max(facts.expert_counts)
    slots = sorted({BUSY_SLOTS + -(-experts * part // 32) for part in (0, 1, 2, 4, 8, 12, 16, 24)})
    for n, size in product(counts, sizes):
        if not wishes.n_batches and n > 1 and (n - 1) * size >= requests:
            continue  # the last batch would be empty
        prompts = demand.group(1, size).prompt_tokens
        least = prompts if facts.reads_whole_prompts else size
        useful = [tokens for tokens in PREFILL_TOKENS if least <= tokens < prompts]
        largest = [prompts] if prompts <= PREFILL_TOKENS[0] else []
        wish = wishes.prefill_tokens
        prefills = [max(least, min(wish, prompts))] if wish else [*largest, *useful] or [least]
        yield from (Candidate(n, size, tokens, count) for tokens in prefills for count in slots)


def needed(facts: ModelFacts, demand: Demand, budget: Budget, choice: Candidate) -> dict[str, int]:
    """Bytes by use, residents apart."""
    group = demand.group(choice.n_batches, choice.batch_size)
    tokens = in_flight(demand, choice)
    turn = min(choice.prefill_tokens, group.batch_size * group.longest)  # tokens of one batch's turn, at most
    return {
        "runtime": budget.runtime,
        "fixed": facts.fixed_bytes,
        "staging": facts.staging_bytes,
        "dense_slots": DENSE_SLOTS * facts.largest_dense,
        "expert_slots": choice.expert_slots * facts.largest_expert,
        "kv_cache": group.context_tokens * facts.kv_bytes,
        "workspace": tokens * facts.workspace_bytes + facts.rows_bytes + min(tokens, facts.rows) * facts.row_bytes,
        "activations": activation_bytes(facts, group, tokens, turn),
    }


def activation_bytes(facts: ModelFacts, group: Group, tokens: int, turn: int) -> int:
    """Bytes of the heap for `tokens` that wait in the middle of a layer, of which one batch's turn has `turn`.

    A batch is at work in a layer, or behind the last one, where its next tokens are chosen.
    """
    turn = max(turn, group.batch_size)
    slice_tokens = min(turn, max(facts.slice_tokens, -(-turn // group.batch_size))) if facts.slice_tokens else turn
    at_work = slice_tokens * facts.attention_bytes + turn * group.longest * facts.score_bytes
    logits = group.batch_size * facts.logits_bytes
    return int(HEAP * (max(at_work, logits) + tokens * facts.waiting_bytes))


def lent_slots(facts: ModelFacts, choice: Candidate) -> int:
    """Slots that find room, from a page boundary on, in what prompts need of the workspace; no more than are of use."""
    spare = max(0, choice.prefill_tokens * facts.spare_bytes - PAGE)
    return min(spare // max(1, facts.largest_expert), max(facts.expert_counts))


def in_flight(demand: Demand, choice: Candidate) -> int:
    """Tokens that go through the layers in one sweep, at most: prompts, and one of each sequence that decodes."""
    return choice.prefill_tokens + demand.group(choice.n_batches, choice.batch_size).sequences


def choose_residents(facts: ModelFacts, room: int) -> Iterator[Block]:
    """Blocks that fit into `room`: dense parts first, then experts spread evenly over the layers.

    Every sweep uses every dense part, so a byte spent there saves a byte in each; evenly, because
    a layer that is here while the next is not gives the disk nothing to hide behind.
    """
    for block in sorted(facts.block_bytes, key=lambda block: (block.expert, block.layer)):
        if facts.block_bytes[block] <= room:
            room -= facts.block_bytes[block]
            yield block


def too_small(need: int, choice: Candidate, budget: Budget, facts: ModelFacts, weights: int) -> BudgetError:
    """The refusal, with a budget that would do. `weights`: bytes of those that have to stay."""
    need += weights
    n, size = choice.n_batches, choice.batch_size
    runtime = f"the interpreter and torch ({format_size(budget.runtime)}), " if budget.runtime else ""
    stay = f"weights that have no file to be streamed from ({format_size(weights)}), " if weights else ""
    # Rounded up, and never to the need itself: read back through a float, that may be a byte short.
    return BudgetError(
        f"hw.device_memory={format_size(budget.nbytes)} ({budget.reason}) is too small: {runtime}{stay}slots for the "
        f"largest blocks ({format_size(facts.largest_dense)} and {format_size(facts.largest_expert)}), "
        f"what belongs to no layer, and {n} batch{'es' if n > 1 else ''} of {size} need {format_size(need)}; "
        f"set hw.device_memory={(need // 100_000 + 1) / 10}MB or more"
    )
