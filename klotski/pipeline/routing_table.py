"""How a model routes, as far as it has been seen: which experts are used, and which follow which.

The paper's table (section 6): for each layer, how often a token that used expert i in the layer
before used expert j in this one. Each token of a group votes with its rows; the experts with most
votes are hot. The table learns from every sweep, and may begin with what earlier runs have learned.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klotski.core import Routing

__all__ = ["RoutingTable"]

RECENT = 0.9  # of a share that weighs in the next one, sweep by sweep
LASTING = 0.97  # likewise of the pairs: far more numbers to learn, from the same tokens
DOUBT = 0.1  # of a sweep's tokens, that a row has to have seen to count as much as the layer's shares
SEEN = 1024  # tokens of a batch whose pairs are counted, at most; a prompt's neighbours add little

Counts = NDArray[np.float64]


class RoutingTable:
    """What was seen of each layer, `experts` in each, 0 for a layer without.

    `shares[l]` [E]: each expert's share of a sweep's tokens, discounted and summed. `pairs[l]`
    [E before, E]: the share that used i in the layer with experts before, and j in this one, likewise;
    for the first such layer [0, E]. (Shares, so that one prompt does not outweigh all that follows it.)
    `tokens[l]` [E]: in this run, plainly counted.
    """

    def __init__(self, experts: Sequence[int]) -> None:
        self.experts = list(experts)
        layers = [layer for layer, count in enumerate(experts) if count]
        self._before = {layer: before for before, layer in pairwise(layers)}
        self.shares = [np.zeros(count) for count in experts]
        self.pairs = [
            np.zeros((experts[self._before[layer]] if layer in self._before else 0, count))
            for layer, count in enumerate(experts)
        ]
        self.tokens = [np.zeros(count, dtype=np.int64) for count in experts]
        self._top_k = 1
        self._steady = [0.0] * len(self.experts)  # of the hottest of one sweep, how many are in the next, summed
        self._sights = [0] * len(self.experts)
        self._hottest: list[set[int]] = [set()] * len(self.experts)
        self._latest: list[Counts] = [np.zeros(count) for count in experts]
        self._choices: dict[int, list[NDArray[Any]]] = {}  # [T, K] of each batch, of the layer seen last

    def observe(self, layer: int, routings: Sequence[Routing]) -> None:
        """Learn what the routers of a layer said of each batch of the group; batches come in the same order."""
        counts = np.sum([routing.counts for routing in routings], axis=0)
        self.shares[layer] = RECENT * self.shares[layer] + counts / max(1, counts.sum())
        self.tokens[layer] += counts
        self._latest[layer] = counts.astype(float)
        choices = [sample(routing.choices) for routing in routings if routing.choices is not None]
        self._learn_pairs(layer, choices)
        self._choices = {layer: choices}
        self._top_k = choices[0].shape[1] if choices else 1
        self._note_hottest(layer)

    def popularity(self, layer: int) -> Counts:
        """Each expert's share of a layer's tokens so far, the recent past weighing more."""
        return self.shares[layer]

    def votes(self, layer: int) -> Counts:
        """Tokens that each expert of a layer may expect, by what the group's tokens used in the layer before."""
        if layer not in self._before:
            return self.popularity(layer)
        seen = self.pairs[layer]
        shares = self.shares[layer] / max(self.shares[layer].sum(), 1e-9)
        rows = (seen + DOUBT * shares) / (seen.sum(axis=1, keepdims=True) + DOUBT)
        votes: Counts = self._latest[self._before[layer]] @ rows
        return votes

    def summary(self) -> dict[str, Any]:
        """Who was hot in this run, how skewed and how steady: the content of `experts.json`."""
        return {"top_k": self._top_k, "tokens": [each.tolist() for each in self.tokens], "stability": self._stability()}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is worth keeping, by name."""
        return {
            f"{what}_{layer}": values
            for what, layers in (("shares", self.shares), ("pairs", self.pairs))
            for layer, values in enumerate(layers)
        }

    def recall(self, arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Begin with what another table of the same model had learned; False, and nothing, if it was another's."""
        mine = self.arrays()
        if f"shares_{len(self.experts)}" in arrays:
            return False
        if any(name not in arrays or arrays[name].shape != values.shape for name, values in mine.items()):
            return False
        self.shares = [arrays[f"shares_{layer}"].copy() for layer in range(len(self.experts))]
        self.pairs = [arrays[f"pairs_{layer}"].copy() for layer in range(len(self.experts))]
        return True

    def _stability(self) -> list[float | None]:
        """For each layer, of one sweep's hottest experts the share that is among the next one's; None: not known."""
        seen = zip(self._steady, self._sights, strict=True)
        return [steady / (sights - 1) if sights > 1 else None for steady, sights in seen]

    def _learn_pairs(self, layer: int, choices: Sequence[NDArray[Any]]) -> None:
        before = self._choices.get(self._before.get(layer, -1), [])
        # Of a prompt, the last layer sees the last tokens alone.
        couples = [pair for pair in zip(before, choices, strict=False) if len(pair[0]) == len(pair[1])]
        if couples:
            former, latter = (np.concatenate(each) for each in zip(*couples, strict=True))
            counts = count_pairs(former, latter, self.pairs[layer].shape)
            self.pairs[layer] = LASTING * self.pairs[layer] + counts / len(former)

    def _note_hottest(self, layer: int) -> None:
        hottest = set(np.argsort(-self._latest[layer], kind="stable")[: self._top_k].tolist())
        if self._sights[layer]:
            self._steady[layer] += len(hottest & self._hottest[layer]) / self._top_k
        self._hottest[layer] = hottest
        self._sights[layer] += 1


def sample(choices: NDArray[Any]) -> NDArray[Any]:
    """Some of a batch's tokens, evenly spread; a copy, so that the batch's own memory is not held."""
    return np.array(choices[:: -(-len(choices) // SEEN) or 1])


def count_pairs(former: NDArray[Any], latter: NDArray[Any], shape: tuple[int, ...]) -> Counts:
    """How often each pair of experts was used by one token: [T, K] and [T, K'] to [E, E']."""
    codes = former[:, :, None] * shape[1] + latter[:, None, :]
    return np.bincount(codes.ravel(), minlength=shape[0] * shape[1]).reshape(shape).astype(float)
