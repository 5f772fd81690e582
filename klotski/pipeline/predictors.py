"""Who says which experts of a layer will be hot.

`correlation` is the paper's: what the group's tokens used in the layer before. `lookahead` applies
the layer's router early, to what the tokens are at its entry. `popularity` goes by what was used so
far. `random` and `none` are there to be compared with.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from random import Random

import numpy as np

from klotski.core import Prediction, Routing
from klotski.pipeline.routing_table import RoutingTable

__all__ = ["Predictor", "create_predictor"]


class Predictor(ABC):
    """Scores the experts of layers to come. Whoever predicts, the table learns."""

    def __init__(self, table: RoutingTable) -> None:
        self.table = table

    def observe(self, layer: int, routings: Mapping[int, Routing]) -> None:
        """Learn what the routers of a layer said of each batch of the group, by the batch's index."""
        self.table.observe(layer, routings)

    def foresee(self, layer: int, outlooks: Sequence[Sequence[float] | None]) -> None:  # noqa: B027  (most cannot)
        """Hear what a layer's router would say of each batch that waits at its entry; None: it was not asked."""

    @abstractmethod
    def scores(self, layer: int) -> Sequence[float]:
        """A score for each expert of a layer, higher is hotter; none at all: nobody can tell."""


class Popularity(Predictor):
    """An expert is as hot as it has been so far."""

    def scores(self, layer: int) -> Sequence[float]:
        """The share of tokens of each expert."""
        shares: list[float] = self.table.popularity(layer).tolist()
        return shares


class Correlation(Predictor):
    """An expert is hot that follows those that this group's tokens have just used."""

    def scores(self, layer: int) -> Sequence[float]:
        """The votes of the group's tokens."""
        votes: list[float] = self.table.votes(layer).tolist()
        return votes


class Lookahead(Correlation):
    """An expert is hot that its router chooses for the tokens as they come in; until then, by correlation."""

    def __init__(self, table: RoutingTable) -> None:
        super().__init__(table)
        self._outlook: dict[int, list[float]] = {}

    def foresee(self, layer: int, outlooks: Sequence[Sequence[float] | None]) -> None:
        """Keep what the router says already, until it has spoken."""
        asked = [outlook for outlook in outlooks if outlook is not None]
        if asked:
            self._outlook = {layer: np.sum(asked, axis=0).tolist()}

    def scores(self, layer: int) -> Sequence[float]:
        """Tokens that would choose each expert."""
        return self._outlook.get(layer) or super().scores(layer)


class Chance(Predictor):
    """Any expert may be hot."""

    def __init__(self, table: RoutingTable) -> None:
        super().__init__(table)
        self._random = Random(0)
        self._scores = [[self._random.random() for _ in range(count)] for count in table.experts]

    def observe(self, layer: int, routings: Mapping[int, Routing]) -> None:
        """Draw again, for the layer's next time."""
        super().observe(layer, routings)
        self._scores[layer] = [self._random.random() for _ in self._scores[layer]]

    def scores(self, layer: int) -> Sequence[float]:
        """Numbers that mean nothing, the same until the layer has been seen."""
        return self._scores[layer]


class Nobody(Predictor):
    """Nobody can tell."""

    def scores(self, layer: int) -> Sequence[float]:
        """Nothing."""
        return ()


PREDICTORS: dict[Prediction, Callable[[RoutingTable], Predictor]] = {
    Prediction.correlation: Correlation,
    Prediction.lookahead: Lookahead,
    Prediction.popularity: Popularity,
    Prediction.random: Chance,
    Prediction.none: Nobody,
}


def create_predictor(prediction: Prediction, table: RoutingTable) -> Predictor:
    """The predictor of that name."""
    return PREDICTORS[prediction](table)
