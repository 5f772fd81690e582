"""What routers would say: choices of experts for tokens that nobody computes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from klotski.core import Routing

__all__ = ["Routers"]

ONE_BY_ONE = 256  # tokens of a batch, at most, each of which chooses; of more, the counts alone are drawn


class Routers:
    """Draws the routing of a model, the same for the same seed.

    `shares[l]` [E]: the share of tokens that choose each expert of a layer, which sums to `top_k`; None:
    nobody knows, and all are equally likely. A token never chooses an expert twice.
    """

    def __init__(
        self, experts: Sequence[int], top_k: int, shares: Sequence[Sequence[float]] | None = None, seed: int = 0
    ) -> None:
        self._top_k = top_k
        self._random = np.random.default_rng(seed)
        self._chances = [chances(layer, count, shares) for layer, count in enumerate(experts)]

    def draw(self, layer: int, tokens: int) -> Routing:
        """What a layer's router says of so many tokens."""
        chances = self._chances[layer]
        if tokens > ONE_BY_ONE:
            counts = np.minimum(self._random.multinomial(tokens * self._top_k, chances), tokens)
            return Routing(tuple(counts.tolist()))
        # The k largest of log p plus Gumbel noise are k draws without replacement.
        noise = self._random.gumbel(size=(tokens, len(chances)))
        choices = np.argpartition(-(np.log(chances) + noise), self._top_k - 1, axis=1)[:, : self._top_k]
        counts = np.bincount(choices.ravel(), minlength=len(chances))
        return Routing(tuple(counts.tolist()), choices)


def chances(layer: int, experts: int, shares: Sequence[Sequence[float]] | None) -> NDArray[np.float64]:
    """The chance of each expert of a layer to be a token's first choice; none is quite without."""
    known = np.maximum(np.ones(experts) if shares is None else np.array(shares[layer]), 1e-9)
    shares_of_one: NDArray[np.float64] = known / known.sum()
    return shares_of_one
