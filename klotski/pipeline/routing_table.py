"""How a model routes, as far as it has been seen: which experts are used, and which follow which.

The paper's table (section 6): for each layer, how often a token that used expert i in the layer
before used expert j in this one. Each token of a group votes with its rows; the experts with most
votes are hot. The table learns from every sweep, and may begin with what earlier runs have learned.

Two things are otherwise than in the paper. What comes before the first layer is the last one, where the
sequence's token before this one went through. And a token's rows do not add up, each a guess of its own:
they are evidence. Each says how much likelier than usual expert j is after i; what is usual is what this
group did in its last sweeps. So a group that favours some experts is known to, whatever its rows say of
others that came before it, and the rows of a token that used two experts say more than either.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klotski.core import Routing

__all__ = ["RoutingTable"]

RECENT = 0.95  # of a share that weighs in the next one, sweep by sweep
LASTING = 0.97  # likewise of the pairs: far more numbers to learn, from the same tokens
DOUBT = 0.3  # of a sweep's pairs, that a row has to have seen to count as much as what is usual
SEEN = 1024  # tokens of a batch whose pairs are counted, at most; a prompt's neighbours add little
VOTERS = 256  # tokens of a group, at most: more would name the same experts
RARE = 1e-6  # a share that is not quite nothing

Counts = NDArray[np.float64]


class RoutingTable:
    """What was seen of each layer, `experts` in each, 0 for a layer without.

    `shares[l]` [E]: each expert's share of a sweep's tokens, discounted and summed. `pairs[l]`
    [E before, E]: the share that used i in the layer with experts before, and j in this one, likewise; for
    the first such layer, in the last one of the sweep before. (Shares, so that one prompt does not outweigh
    all that follows it.)
    `tokens[l]` [E]: in this run, plainly counted.
    """

    def __init__(self, experts: Sequence[int]) -> None:
        self.experts = list(experts)
        layers = [layer for layer, count in enumerate(experts) if count]
        self.before = dict(zip(layers, layers[-1:] + layers[:-1], strict=True))
        """Of each layer with experts, the one that a token went through before."""
        self.shares = [np.zeros(count) for count in experts]
        self.pairs = [np.zeros((experts[self.before.get(layer, layer)], count)) for layer, count in enumerate(experts)]
        self.tokens = [np.zeros(count, dtype=np.int64) for count in experts]
        self._top_k = 1
        self._steady = [0.0] * len(self.experts)  # of the hottest of one sweep, how many are in the next, summed
        self._sights = [0] * len(self.experts)
        self._hottest: list[set[int]] = [set()] * len(self.experts)
        self._votes: dict[int, Counts] = {}  # since something was observed last
        self._choices: dict[int, dict[int, NDArray[Any]]] = {}  # [T, K] of each batch, of the layer seen last

    def observe(self, layer: int, routings: Mapping[int, Routing]) -> None:
        """Learn what the routers of a layer said of each batch of the group, by the batch's index."""
        counts = np.sum([routing.counts for routing in routings.values()], axis=0)
        self.shares[layer] = RECENT * self.shares[layer] + counts / max(1, counts.sum())
        self.tokens[layer] += counts
        self._votes.clear()
        choices = {batch: sample(routing.choices) for batch, routing in routings.items() if routing.choices is not None}
        self._learn_pairs(layer, choices)
        self._choices = {layer: choices}
        self._top_k = next((each.shape[1] for each in choices.values()), 1)
        self._note_hottest(layer, counts)

    def popularity(self, layer: int) -> Counts:
        """Each expert's share of a layer's tokens so far, the recent past weighing more."""
        return self.shares[layer]

    def votes(self, layer: int) -> Counts:
        """Tokens that each expert of a layer may expect, by what the group's tokens used in the layer before."""
        if layer not in self._votes:  # asked for while the layer before is computed, and again at its entry
            self._votes[layer] = self._count_votes(layer)
        return self._votes[layer]

    def _count_votes(self, layer: int) -> Counts:
        before = self._choices_before(layer)
        if not before:
            return self.popularity(layer)
        tokens = np.concatenate(list(before.values()))
        voters = tokens[:: -(-len(tokens) // VOTERS)]
        usual = np.maximum(self.shares[layer] / max(self.shares[layer].sum(), RARE), RARE)
        # How much likelier than after any expert each is after this one, but for a factor that all of a row share.
        lift = np.divide(self.pairs[layer], self._after_any(layer), dtype=np.float32, casting="same_kind")
        evidence = np.log(lift + np.float32(DOUBT))
        beliefs = np.tile(np.log(usual).astype(np.float32), (len(voters), 1))  # [T, E]
        for rank in range(voters.shape[1]):
            beliefs += evidence[voters[:, rank]]
        beliefs = np.exp(beliefs - beliefs.max(axis=1, keepdims=True))
        beliefs /= beliefs.sum(axis=1, keepdims=True)
        votes: Counts = beliefs.sum(axis=0, dtype=np.float64) * (self._top_k * len(tokens) / len(voters))
        return votes

    def rows(self, layer: int) -> Counts:
        """For each expert of the layer before, how likely each of a layer is to follow it: [E before, E]."""
        seen, after_any = self.pairs[layer], self._after_any(layer)
        rows: Counts = (seen + DOUBT * after_any) / (seen.sum(axis=1, keepdims=True) + DOUBT)
        return rows

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
        self._votes.clear()
        self.pairs = [arrays[f"pairs_{layer}"].copy() for layer in range(len(self.experts))]
        return True

    def _choices_before(self, layer: int) -> Mapping[int, NDArray[Any]]:
        """What each batch chose in the layer before, if that was the one seen last."""
        return self._choices.get(self.before.get(layer, layer), {})

    def _after_any(self, layer: int) -> Counts:
        seen = self.pairs[layer]
        after_any: Counts = np.maximum(seen.sum(axis=0) / max(seen.sum(), RARE), RARE)
        return after_any

    def _stability(self) -> list[float | None]:
        """For each layer, of one sweep's hottest experts the share that is among the next one's; None: not known."""
        seen = zip(self._steady, self._sights, strict=True)
        return [steady / (sights - 1) if sights > 1 else None for steady, sights in seen]

    def _learn_pairs(self, layer: int, choices: Mapping[int, NDArray[Any]]) -> None:
        before = self._choices_before(layer)
        # Of a prompt, the last layer sees the last tokens alone.
        both = [batch for batch in choices if batch in before and len(before[batch]) == len(choices[batch])]
        if both:
            former, latter = (np.concatenate([each[batch] for batch in both]) for each in (before, choices))
            self.pairs[layer] *= LASTING
            self.pairs[layer] += count_pairs(former, latter, self.pairs[layer].shape) / len(former)

    def _note_hottest(self, layer: int, counts: NDArray[Any]) -> None:
        hottest = set(np.argsort(-counts, kind="stable")[: self._top_k].tolist())
        if self._sights[layer]:
            self._steady[layer] += len(hottest & self._hottest[layer]) / self._top_k
        self._hottest[layer] = hottest
        self._sights[layer] += 1


def sample(choices: NDArray[Any]) -> NDArray[Any]:
    """Some of a batch's tokens, evenly spread; a copy, so that the batch's own memory is not held."""
    return np.array(choices[:: -(-len(choices) // SEEN) or 1])


def count_pairs(former: NDArray[Any], latter: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.intp]:
    """How often each pair of experts was used by one token: [T, K] and [T, K'] to [E, E']."""
    codes = former[:, :, None] * shape[1] + latter[:, None, :]
    return np.bincount(codes.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
