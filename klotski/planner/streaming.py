"""How much a sweep uses of a model, and how much of that it reads from disk, in the mean.

A token chooses an expert with a probability p: the share of tokens that chose it in earlier runs, or K of
all experts of the layer where nothing is known. Of T tokens at least one does with 1 - (1 - p)^T: a few
tokens use a few experts, and many use all. Tokens that are like each other choose alike, so that real
groups use somewhat less.
"""

from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from math import inf, log, log1p
from typing import NamedTuple

import numpy as np

from klotski.planner.facts import ModelFacts
from klotski.planner.placement import placement_order
from klotski.planner.terms import Wishes

__all__ = ["Streaming", "Use", "Using"]

STEP = 1.25  # from one number of tokens that is worked out to the next; what lies between is interpolated
ALL = -1  # the step of so many tokens that an expert is used, or never
NEVER = 1e-9  # so improbable


class Use(NamedTuple):
    """What one sweep reads from disk, in bytes, and how many experts it computes; in the mean, so none is whole."""

    dense: float
    experts: float
    computed: float

    @property
    def nbytes(self) -> float:
        """All that it reads."""
        return self.dense + self.experts


Using = Callable[[float], Use]
"""What a sweep of so many tokens uses."""


class Here(NamedTuple):
    """What is held in memory: so many blocks, a part of the next, and so large a share of what is asked of a cache."""

    whole: int
    part: float
    hits: float


class Streaming:
    """What memory that is left over saves, on given terms. Works out each number of tokens once."""

    def __init__(self, facts: ModelFacts, wishes: Wishes) -> None:
        order = placement_order(facts, wishes)
        self._wishes = wishes
        self._is_dense = np.array([block.is_dense for block in order])
        self._shares = np.array([facts.share(block) for block in order])
        self._stored = np.array([facts.stored_bytes[block] for block in order], dtype=float)
        self._sizes = [float(facts.block_bytes[block]) for block in order]
        self._ends: list[float] = np.cumsum(self._sizes).tolist()
        self._dense = sum(size for block, size in facts.block_bytes.items() if block.is_dense)
        self._slot = max(1, facts.largest_expert)
        self._num_experts = max(1, facts.num_experts)
        self._tables: dict[int, tuple[list[float], float, float]] = {}
        rarest = min((share for share in self._shares if share > 0), default=1.0)
        self._enough = log(NEVER) / log1p(-rarest) if rarest < 1 else 1.0  # tokens that use all that is ever used

    def using(self, left: float, slots: int) -> Using:
        """What sweeps use with so many bytes left over, beside so many slots for experts.

        A cache is taken to hit as often as one that makes room at random: the share of all experts that it holds.
        """
        held = left if self._wishes.keeps_experts else 0.0
        hits = 0.0
        if self._wishes.caches_experts:
            held = min(left, self._dense)
            hits = min(1.0, (slots + (left - held) / self._slot) / self._num_experts)
        whole = bisect_right(self._ends, held)
        begin = self._ends[whole - 1] if whole else 0.0
        part = (held - begin) / self._sizes[whole] if whole < len(self._sizes) else 0.0
        return partial(self._use, Here(whole, part, hits))

    def _use(self, here: Here, tokens: float) -> Use:
        if tokens >= self._enough:
            return self._at(ALL, here)
        step = int(log(tokens, STEP)) + 1 if tokens >= 1 else 0
        part = (tokens - count(step)) / (count(step + 1) - count(step))
        return between(self._at(step, here), self._at(step + 1, here), part)

    def _at(self, step: int, here: Here) -> Use:
        reads, of_dense, computed = self._table(step)
        saved, more = reads[here.whole], reads[min(here.whole + 1, len(reads) - 1)]
        saved += here.part * (more - saved)
        of_experts = reads[-1] - of_dense
        saved_dense = min(saved, of_dense)
        saved_experts = min(of_experts, saved - saved_dense + here.hits * of_experts)
        return Use(of_dense - saved_dense, of_experts - saved_experts, computed)

    def _table(self, step: int) -> tuple[list[float], float, float]:
        """Bytes that sweeps read of the first 0, 1, 2... blocks if none is here; of dense parts; experts computed."""
        if step not in self._tables:
            use = np.where(self._is_dense, 1.0, 1 - (1 - self._shares) ** count(step))
            is_read = np.ones_like(use) if self._wishes.prefetch.is_whole else use
            reads = [0.0, *np.cumsum(is_read * self._stored).tolist()]
            self._tables[step] = reads, float(self._stored[self._is_dense].sum()), float(use[~self._is_dense].sum())
        return self._tables[step]


def between(less: Use, more: Use, part: float) -> Use:
    """What lies so far on the way from one to the other."""
    rest = 1 - part
    return Use(
        rest * less.dense + part * more.dense,
        rest * less.experts + part * more.experts,
        rest * less.computed + part * more.computed,
    )


def count(step: int) -> float:
    """Tokens at a step: 0, then 1 and on by the same factor; at the last one, any number."""
    if step == ALL:
        return inf
    return STEP ** (step - 1) if step else 0.0
