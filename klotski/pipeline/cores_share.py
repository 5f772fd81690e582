"""What the cores are given to do: of a layer's experts that are missing on a device, some of those that lie below it.

They begin when all routers of a layer have spoken, while what is moved comes all the time. So the link is given as many
more experts of a layer as it brings while batches attend; beyond that, both are to end at once.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial

from klotski.core import Block, Compute, Operation
from klotski.lanes import Event
from klotski.pipeline.contracts import Below, Worker
from klotski.pipeline.policy import Policy

__all__ = ["CoresShare"]


class CoresShare:
    """Of one layer after the other, the experts that cores compute where they lie. `blocks`: all experts of each."""

    def __init__(self, blocks: Sequence[Sequence[Block]], policy: Policy, below: Below) -> None:
        self._blocks = blocks
        self._policy = policy
        self._below = below
        self._held_back: dict[Block, float] = {}  # asked for, and not sent for; the tokens that each is expected to get
        self._rest = 0.0  # seconds of the cores, until all routers have spoken
        self._for_the_next = 0.0  # seconds of the link, once they have

    def enter(self, batches: int, came_ahead: int) -> None:
        """A layer begins, with so many batches; about as many experts as came ahead for it will for the next one."""
        costs = self._below.pace.costs
        self._rest = batches * costs.attention
        self._for_the_next = max(0.0, came_ahead * costs.moving - self._rest)

    def ahead(
        self, layer: int, wanted: list[int], scores: Sequence[float], choices: float, staying: Collection[int]
    ) -> list[int]:
        """Of experts that a policy would bring ahead, those that cores will probably not compute instead.

        `scores`: a predictor's. `choices`: of experts, that tokens make. `staying`: experts that need not come. What is
        unlikely to be used at all would keep the link from what is missing, of which it is to bring some.
        """
        if not wanted:
            return wanted
        known = scores if any(scores) else [1.0] * len(scores)
        likely = [expert for expert in self._policy.likely(scores, choices) if expert not in staying]
        share = choices / sum(known)
        left = self._choose(layer, {expert: share * known[expert] for expert in likely}, 0.0, self._rest)
        return [expert for expert in wanted if expert in staying or (expert in likely and expert not in left)]

    def hold_back(self, layer: int, tokens: Mapping[int, float], moving: int) -> Collection[Block]:
        """Of experts that have been asked for and are missing, those not to be sent for.

        `tokens`: that each is expected to get of the whole group. `moving`: experts that come before them.
        """
        costs = self._below.pace.costs
        busy = sum(costs.computing(count) for count in self._held_back.values())
        left = self._choose(layer, tokens, moving * costs.moving + self._for_the_next, busy)
        held_back = {self._blocks[layer][expert]: tokens[expert] for expert in left}
        self._held_back |= held_back
        return held_back

    def settle(self, layer: int, tokens: Mapping[int, int], moving: int) -> tuple[list[int], list[Block]]:
        """What will be computed below of the experts that are missing, and what was held back and is to be moved.

        `tokens`: of each, all routers having spoken. `moving`: experts that come before them.
        """
        left = self._choose(layer, tokens, moving * self._below.pace.costs.moving + self._for_the_next, 0.0)
        if not left:
            self._below.pace.forget()
        wanted = [block for block in self._held_back if block.expert not in left]
        self._held_back.clear()
        return left, wanted

    def compute(self, layer: int, tokens: Mapping[int, int], worker: Worker, gathered: Event) -> list[Event]:
        """Begin to compute experts, each over its tokens, after `gathered`; returns when each will have been."""
        return [
            self._below.lane.submit(
                Operation(Compute.EXPERT, layer, expert, tokens=count),
                partial(worker.compute_below, layer, expert),
                (gathered,),
            )
            for expert, count in tokens.items()
        ]

    def _choose(self, layer: int, tokens: Mapping[int, float], link: float, cores: float) -> list[int]:
        """Of missing experts, those to be computed below; `link`, `cores`: seconds for which these are taken before."""
        blocks, costs = self._blocks[layer], self._below.pace.costs
        lying = {expert: count for expert, count in tokens.items() if blocks[expert] in self._below.blocks}
        return self._policy.below(lying, costs, link + (len(tokens) - len(lying)) * costs.moving, cores)
