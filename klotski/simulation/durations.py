"""How long each operation takes: the planner's costs, one operation at a time."""

from collections.abc import Callable, Mapping

from klotski.core import STEP, Compute, Operation, Products, product_rows
from klotski.pipeline import MissCosts
from klotski.planner.costs import SHARED, Costs, Work
from klotski.simulation.batch import SyntheticBatch

__all__ = ["CoresDurations", "Durations"]


class Durations:
    """Seconds of operations on the compute lane, by the planner's own costs: there is one cost model.

    `batches`: those under way, by index. `is_reading`: whether blocks arrive now, which costs experts some of
    memory's bandwidth, and the cores themselves. What sorting, summing and leaving a layer take is part of a
    batch's turn.
    """

    def __init__(
        self,
        costs: Costs,
        batches: Mapping[int, SyntheticBatch],
        is_reading: Callable[[], bool],
        products: Products = Products.group,
    ) -> None:
        self._costs = costs
        self._batches = batches
        self._is_reading = is_reading
        self._products = products
        self._layers = costs.facts.num_layers
        self._of_row = costs.multiplying(1, 0, 0)
        self._of_weights = costs.multiplying(0, 1, 0)
        self._of_turn = costs.multiplying(0, 0, 1)

    def __call__(self, operation: Operation) -> float:
        """Seconds of one operation."""
        if operation.kind is Compute.EXPERT:  # first, for there are far more of them
            seconds = self._of_expert(operation)
            return seconds * (1 + SHARED) if self._is_reading() else seconds
        match operation.kind:
            case Compute.ATTENTION:
                batch = self._batches[operation.batch]
                if batch.looks_below:  # the other half comes once attention has been computed elsewhere
                    return self._costs.attention(Work(operation.tokens, 0, 1, 0)) / 2 / self._layers
                context = batch.sequences * batch.seen
                pairs = batch.layer_pairs if batch.is_prefilling else 0  # others' are looked up, which sets their pace
                work = Work(operation.tokens, batch.sequences, 1, context, pairs)
                return (self._costs.attention(work) + self._costs.cache(work)) / self._layers
            case Compute.PROJECT:
                return self._costs.attention(Work(operation.tokens, 0, 1, 0)) / 2 / self._layers
            case Compute.SCORE:
                return self._costs.head(Work(0, operation.tokens, 1, 0))
        return 0.0

    def _of_expert(self, operation: Operation) -> float:
        """Seconds of one expert, or of several at once, where nothing arrives meanwhile."""
        turns = self._count(operation)
        count = len(operation.parts) or turns
        rows = max(STEP * count, product_rows(operation.tokens))
        return rows * self._of_row + count * self._of_weights + turns * self._of_turn

    def _count(self, operation: Operation) -> int:
        """Products of an operation on experts."""
        if self._products is Products.group:
            return 1
        routings = (batch.routing for batch in self._batches.values())
        return sum(routing.counts[operation.expert] > 0 for routing in routings if routing is not None)


class CoresDurations:
    """Seconds of operations on the cores beside a GPU: attention over what stays there, and experts.

    `looking`: bytes a second. `costs`: of an expert that they compute.
    """

    def __init__(self, looking: float, costs: MissCosts) -> None:
        self._looking = looking
        self._costs = costs

    def __call__(self, operation: Operation) -> float:
        """Seconds of one operation."""
        if operation.kind == Compute.EXPERT:
            return self._costs.computing(operation.tokens)
        return operation.nbytes / self._looking
