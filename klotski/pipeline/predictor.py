"""Which experts of a layer will be hot."""

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Popularity", "Predictor"]


class Predictor(Protocol):
    """Learns from the routing of each layer and scores the experts of the next time."""

    def scores(self, layer: int) -> Sequence[float]:
        """A score for each expert of a layer; higher is hotter."""

    def observe(self, layer: int, counts: Sequence[int]) -> None:
        """Learn how many of the group's tokens each expert of a layer got."""


class Popularity:
    """An expert is as hot as it has been so far, with more weight on the recent past."""

    DECAY = 0.9  # of a count, for each sweep that it lies back

    def __init__(self, experts: Sequence[int]) -> None:
        """`experts`: how many each layer has."""
        self._scores = [[0.0] * count for count in experts]

    def scores(self, layer: int) -> Sequence[float]:
        """Discounted share of tokens of each expert."""
        return self._scores[layer]

    def observe(self, layer: int, counts: Sequence[int]) -> None:
        """Add one sweep's counts, normalised so that a prefill does not drown what follows."""
        total = sum(counts) or 1
        self._scores[layer] = [
            self.DECAY * score + count / total for score, count in zip(self._scores[layer], counts, strict=True)
        ]
