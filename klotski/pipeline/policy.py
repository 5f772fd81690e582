"""Which blocks to bring and which expert to compute next: pure functions of what is known.

A strategy is a `Policy`, five switches of the config. There is one policy, so that every
difference between two strategies is an override.
"""

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from klotski.core import Misses, OnDemand, Order, Prefetch

__all__ = ["MissCosts", "Policy"]

LIKELY = 0.5  # chance of being used, from which an expert is worth reading far ahead
SURE = 0.9  # likewise, worth bringing for want of a hotter one
MOST_BELOW = 4096  # tokens of a layer's experts that are computed where they lie: what they take there was not planned
BY_INDEX = (Order.index, Order.batch)


class MissCosts(NamedTuple):
    """Seconds that it takes to move an expert, and to compute one where it lies: whatever its tokens, and for each.

    `attention`: of a batch in a layer, before its router speaks.
    """

    moving: float
    turn: float
    token: float
    attention: float = 0.0

    def computing(self, tokens: float) -> float:
        """Seconds of one that is computed where it lies."""
        return self.turn + tokens * self.token


@dataclass(frozen=True)
class Policy:
    """One strategy. `hot` is how many experts `Prefetch.hot` brings."""

    prefetch: Prefetch
    hot: int
    on_demand: OnDemand
    order: Order
    misses: Misses = Misses.move

    def ahead(self, scores: Sequence[float], *, is_entered: bool = True) -> list[int]:
        """Experts to bring before the layer's routing is known, most urgent first.

        `scores`: one for each expert, how much of the group's work it is expected to get. `is_entered`: the layer
        before has been left.
        """
        match self.prefetch:
            case Prefetch.none:
                return []
            case Prefetch.sublayer if not is_entered:
                return []
            case Prefetch.layer | Prefetch.sublayer:
                return list(range(len(scores)))
            case Prefetch.hot:
                return hottest(range(len(scores)), scores)[: self.hot]

    def instead(
        self, named: Collection[int], scores: Sequence[float], choices: float, staying: Collection[int]
    ) -> list[int]:
        """Experts to bring for those of `named` that stay, and need not be brought.

        As many others as that, hottest first, if they will almost surely be used by so many choices of tokens: what is
        brought in vain keeps others waiting.
        """
        if self.prefetch is not Prefetch.hot:
            return []
        count = sum(expert in staying for expert in named)
        if not count:
            return []
        sure = used_with(SURE, scores, choices)
        absent = [expert for expert in sure if expert not in named and expert not in staying]
        return absent[:count]

    @property
    def reads_on(self) -> bool:
        """Whether the disk may be layers ahead, where there is memory between it and the device."""
        return self.on_demand is OnDemand.eager and self.prefetch in (Prefetch.layer, Prefetch.hot)

    def likely(self, scores: Sequence[float], choices: float) -> list[int]:
        """Experts that are worth reading so far ahead: all, if whole layers are brought, or those that will more
        likely than not be used by so many choices of tokens, hottest first."""
        if self.prefetch.is_whole:
            return list(range(len(scores)))
        return used_with(LIKELY, scores, choices)

    def demand(self, counts: Sequence[int], asked: Container[int] = ()) -> list[int]:
        """Experts that one batch's routing asks for, but for `asked`, in the order in which to send for them."""
        used = [expert for expert, count in enumerate(counts) if count and expert not in asked]
        return used if self.order in BY_INDEX else hottest(used, counts)

    def below(self, tokens: Mapping[int, float], costs: MissCosts, link: float = 0.0, cores: float = 0.0) -> list[int]:
        """Of experts that are missing, with so many tokens each, those to compute where they lie, coldest first.

        As many of the coldest as let the link, which brings the others, and the cores end soonest. `link`, `cores`:
        seconds for which they are taken already.
        """
        if self.misses is Misses.move:
            return []
        coldest = sorted(tokens, key=lambda expert: (tokens[expert], -expert))
        soonest, best, total = link + len(coldest) * costs.moving, 0, 0.0
        for count, expert in enumerate(coldest, start=1):
            total += tokens[expert]
            cores += costs.computing(tokens[expert])
            end = max(cores, link + (len(coldest) - count) * costs.moving)
            if end >= soonest or total > MOST_BELOW:
                break
            soonest, best = end, count
        return coldest[:best]

    def choose(self, remaining: Mapping[int, int], here: Collection[int], coming: Iterable[int]) -> int:
        """The expert to compute next.

        `remaining`: tokens of each expert still to be computed; `here`, `coming`: those of them
        that can be used now, and those on their way, next arrival first. Where some are here or
        coming the choice is one of them: what has a slot gives it back soonest.
        """
        if self.order is Order.arrival:
            coming = islice(coming, 0 if here else 1)
        known = [*here, *coming] or remaining
        if len(known) == 1:
            return next(iter(known))
        if self.order in BY_INDEX:
            return min(known)
        return min(known, key=lambda expert: (-remaining[expert], expert))


def used_with(chance: float, scores: Sequence[float], choices: float) -> list[int]:
    """Experts that at least one of so many choices will be of with this chance or a better one, hottest first.

    Where nothing is known, one is as likely as another.
    """
    if not any(scores):
        scores = [1.0] * len(scores)
    least = sum(scores) * (1 - (1 - chance) ** (1 / max(1.0, choices)))
    return hottest([expert for expert, score in enumerate(scores) if score >= least], scores)


def hottest(experts: Sequence[int], weight: Sequence[float]) -> list[int]:
    """Experts, given by index, by weight: heaviest first; ties stay by index, so that runs repeat."""
    return sorted(experts, key=weight.__getitem__, reverse=True)
