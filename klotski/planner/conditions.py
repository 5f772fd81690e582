"""The paper's inequalities (4) to (7), section 7: whether a layer's computing hides what it reads.

    (4) n t_cA                             >= t_G
    (5) n (t_cA + t_cG)                    >= t_G + K t_E
    (6) n (t_cA + t_cG) + t_hot            >= t_G + (K + 1) t_E
    (7) n (t_cA + t_cG) + t_hot + sum t_cE >= t_G + (K + |Q|) t_E + t_A

For a sweep of decoding with n full batches, in the mean over layers, at the plan's rates. What is otherwise
here than in the paper:

- A layer's router is part of its dense block. It is computed with attention (t_cG is in t_cA) and arrives with
  it (t_G is 0; its bytes are in t_A), so that (4) always holds.
- Some blocks stay. t_E and t_A are what an arrival takes, times the share of experts and dense parts that do not.
- All experts of a layer are taken to have equally many tokens, so that t_hot is K times t_cE; t_cE is one
  product for all batches. K is the router's; a group that uses fewer has no more hot ones.
- t_cA has what the paper leaves out: cached keys and values on their way from memory.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from klotski.planner.costs import Work
from klotski.planner.memory import Candidate
from klotski.planner.search import Appraiser

__all__ = ["Condition", "Conditions", "check_conditions", "inequalities"]


class Condition(NamedTuple):
    """One inequality, in seconds: computing is to last as long as the transfers that it hides."""

    number: int
    says: str
    compute: float
    transfer: float

    @property
    def holds(self) -> bool:
        """Whether nothing has to wait."""
        return self.compute >= self.transfer

    @property
    def slack(self) -> float:
        """What computing hides of the transfers, as a multiple: below 1 the inequality is violated."""
        return self.compute / self.transfer if self.transfer else float("inf")


@dataclass(frozen=True)
class Conditions:
    """All four, and the smallest n that meets them with all else as planned; None: no n within memory does."""

    each: tuple[Condition, ...]
    smallest_n: int | None

    @property
    def binding(self) -> tuple[Condition, ...]:
        """Those that are violated; if none is, the tightest."""
        return tuple(each for each in self.each if not each.holds) or (min(self.each, key=lambda each: each.slack),)

    def as_dict(self) -> dict[str, Any]:
        """As in `plan.json`."""
        numbers = {str(each.number): each._asdict() | {"holds": each.holds} for each in self.each}
        return numbers | {"binding": [each.number for each in self.binding], "smallest_n": self.smallest_n}


def check_conditions(appraiser: Appraiser, choice: Candidate) -> Conditions:
    """How the inequalities fare with a candidate."""
    return Conditions(tuple(inequalities(appraiser, choice)), smallest_n(appraiser, choice))


def inequalities(appraiser: Appraiser, choice: Candidate) -> list[Condition]:
    """(4) to (7) for one candidate."""
    facts, costs = appraiser.terms.facts, appraiser.costs(choice)
    group = appraiser.terms.demand.group(choice.n_batches, choice.batch_size)
    context = max(0.0, group.context_tokens - group.sequences * group.output_tokens / 2)
    work = Work(group.sequences, group.sequences, -(-group.sequences // group.batch_size), context)
    using = appraiser.using(choice)
    use = using(work.tokens)
    layers = sum(count > 0 for count in facts.expert_counts)
    used = use.computed / layers
    attention = (costs.attention(work) + costs.cache(work)) / facts.num_layers
    expert = costs.experts(work.tokens, costs.products(work, use, using)) / max(use.computed, 1e-9)
    arrival = use.experts / max(use.computed, 1e-9) / costs.arrival(using)
    dense = use.dense / facts.num_layers / costs.arrival(using)
    hot = min(facts.top_k, used)
    first = min(hot + 1, used)
    return [
        Condition(4, "attention hides the router", attention, 0.0),
        Condition(5, "attention hides the hot experts", attention, hot * arrival),
        Condition(6, "and the hot experts the first cold one", attention + hot * expert, first * arrival),
        Condition(7, "a whole layer hides all that it reads", attention + used * expert, used * arrival + dense),
    ]


def smallest_n(appraiser: Appraiser, choice: Candidate) -> int | None:
    """The fewest batches of this size that meet all inequalities, if there are so many and memory is enough."""
    for n in range(1, -(-len(appraiser.terms.demand.lengths) // choice.batch_size) + 1):
        fewer = choice._replace(n_batches=n)
        if appraiser.need(fewer) > appraiser.room:
            return None
        if all(each.holds for each in inequalities(appraiser, fewer)):
            return n
    return None
