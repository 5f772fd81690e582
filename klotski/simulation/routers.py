"""What routers would say: choices of experts for tokens that nobody computes, drawn or as a run recorded them."""

from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from klotski.core import Routing
from klotski.errors import WorkloadError
from klotski.pipeline import RoutingTable

__all__ = ["DrawnRouters", "RecordedRouters", "Routers"]

ONE_BY_ONE = 256  # tokens of a batch, at most, each of which chooses; of more, the counts alone are drawn
SURE = 1 - 1e-6  # of a token, to choose an expert
AT_ONCE = 16  # times that so many tokens of a layer are drawn, where it does not matter what came before


class Routers(Protocol):
    """Say which experts a batch's tokens choose."""

    def ask(self, batch: int, layer: int, tokens: int) -> Routing:
        """What a layer's router says of so many tokens of a batch."""


class DrawnRouters:
    """Draws the routing of a model, the same for the same seed.

    `experts`: how many each layer has. `table`: what runs have seen, whose skew and whose correlation between layers
    is kept: each token draws what follows one of the experts that it used in the layer before. None: nobody knows, and
    all are equally likely. A token never chooses an expert twice.
    """

    def __init__(self, experts: Sequence[int], top_k: int, table: RoutingTable | None = None, seed: int = 0) -> None:
        self._top_k = top_k
        self._random = np.random.default_rng(seed)
        self._table = table
        self._shares = [chances(count, table.shares[layer] if table else None) for layer, count in enumerate(experts)]
        self._chances = [Chances(weights_of(shares[None], top_k)) if len(shares) else None for shares in self._shares]
        self._rows = [
            Chances(weights_of(floor(table.rows(layer)), top_k)) if table and table.pairs[layer].any() else None
            for layer in range(len(experts))
        ]
        self._drawn: dict[tuple[int, int], deque[NDArray[Any]]] = defaultdict(deque)  # by layer and tokens
        self._last: dict[int, tuple[int, NDArray[Any]]] = {}  # of each batch, the layer that it chose in last, and what

    def ask(self, batch: int, layer: int, tokens: int) -> Routing:
        """What a layer's router says of so many tokens of a batch."""
        if tokens > ONE_BY_ONE:
            self._last.pop(batch, None)
            return Routing(tuple(self._count(tokens, self._shares[layer]).tolist()))
        choices = self._choose(batch, layer, tokens)
        if self._table is not None:
            self._last[batch] = layer, choices
        return Routing(tuple(np.bincount(choices.ravel(), minlength=len(self._shares[layer])).tolist()), choices)

    def _choose(self, batch: int, layer: int, tokens: int) -> NDArray[Any]:
        """The experts of each token, by those of the layer before where it is known what follows them: [T, K]."""
        before, last = self._last.get(batch, (None, None))
        rows = self._rows[layer]
        # A prompt's last layer sees the last tokens alone, so that there may be fewer of them than before.
        if rows is not None and last is not None and before == self._before(layer) and len(last) == tokens:
            followed = last[np.arange(tokens), self._random.integers(0, last.shape[1], tokens)]
            return rows.draw(followed, self._top_k, self._random)
        drawn = self._drawn[layer, tokens]
        if not drawn:
            alike = self._chances[layer]
            assert alike is not None, f"layer {layer} has no experts"
            same = np.zeros(AT_ONCE * tokens, dtype=np.intp)
            drawn.extend(np.split(alike.draw(same, self._top_k, self._random), AT_ONCE))
        return drawn.popleft()

    def _count(self, tokens: int, shares: NDArray[np.float64]) -> NDArray[np.intp]:
        """Tokens of each expert, where each of `tokens` chooses several, and none of them twice."""
        counts = np.zeros(len(shares), dtype=np.intp)
        left = tokens * self._top_k
        while left:
            still = np.where(counts < tokens, shares, 0.0)
            counts += self._random.multinomial(left, still / still.sum())
            left = int(np.maximum(counts - tokens, 0).sum())
            np.minimum(counts, tokens, out=counts)
        return counts

    def _before(self, layer: int) -> int | None:
        return self._table.before[layer] if self._table is not None else None


class Chances:
    """Rows of chances to draw experts by, none twice: [R, E]."""

    def __init__(self, weights: NDArray[np.float64]) -> None:
        self._weights = weights.astype(np.float32)
        sums = np.cumsum(weights, axis=1)
        # One rising line of all rows, each of which takes a length of one: a single search finds row and expert.
        self._line = (sums / sums[:, -1:] + np.arange(len(weights))[:, None]).ravel()

    def draw(self, rows: NDArray[Any], k: int, random: np.random.Generator) -> NDArray[Any]:
        """For each of T tokens, `k` of the experts by the row that is named for it: [T] to [T, K]."""
        choices = self._with_repeats(rows, k, random)
        by_number = np.sort(choices, axis=1)
        (twice,) = np.nonzero((by_number[:, 1:] == by_number[:, :-1]).any(axis=1))
        if len(twice):
            # Draws go on until there are k experts, which is as if none could be drawn again; nearly all of these
            # tokens have them after as many draws more.
            drawn = np.hstack([choices[twice], self._with_repeats(rows[twice], k, random)])
            is_again = ((drawn[:, :, None] == drawn[:, None, :]) & np.tri(2 * k, k=-1, dtype=bool)).any(axis=2)
            rank = np.cumsum(~is_again, axis=1)
            is_taken = ~is_again & (rank <= k)
            done = rank[:, -1] >= k
            choices[twice[done]] = drawn[done][is_taken[done]].reshape(-1, k)
            late = ~done
            choices[twice[late]] = self._race(rows[twice[late]], drawn[late], k, random)
        return choices

    def _with_repeats(self, rows: NDArray[Any], k: int, random: np.random.Generator) -> NDArray[Any]:
        experts = self._weights.shape[1]
        marks = random.random((len(rows), k)) + rows[:, None]
        found = np.searchsorted(self._line, marks.ravel(), side="right").reshape(marks.shape) - rows[:, None] * experts
        repeats: NDArray[Any] = np.minimum(found, experts - 1)
        return repeats

    def _race(self, rows: NDArray[Any], drawn: NDArray[Any], k: int, random: np.random.Generator) -> NDArray[np.intp]:
        """The experts that were drawn, fewer than `k`, and the first of the others; the likelier ring more often."""
        weights = self._weights[rows]
        times = random.standard_exponential(weights.shape, dtype=np.float32) / weights
        np.put_along_axis(times, drawn, -1.0, axis=1)
        return np.argpartition(times, k - 1, axis=1)[:, :k]


class Said(msgspec.Struct):
    """A line of `routing.jsonl`: the experts of each token of a batch."""

    batch: int
    layer: int
    choices: list[list[int]]


class RecordedRouters:
    """Says what routers said in a run, in the same order. `experts`: how many each layer has.

    Raises:
        WorkloadError: the run recorded nothing, or a line is damaged.
    """

    def __init__(self, file: Path, experts: Sequence[int]) -> None:
        self._file = file
        self._experts = experts
        self._said: dict[tuple[int, int], deque[list[list[int]]]] = defaultdict(deque)
        try:
            lines = file.read_bytes().splitlines()
        except OSError as error:
            raise WorkloadError(
                f"executor.routing: {file} could not be read: {error.strerror}; record_routing=true writes it"
            ) from error
        for number, line in enumerate(lines, start=1):
            try:
                said = msgspec.json.decode(line, type=Said)
            except msgspec.DecodeError as error:
                raise WorkloadError(f"executor.routing: {file}, line {number} is damaged: {error}") from error
            self._said[said.batch, said.layer].append(said.choices)

    def ask(self, batch: int, layer: int, tokens: int) -> Routing:
        """What the layer's router said of the batch next.

        Raises:
            WorkloadError: the run was another: it had no such batch, or one of another size.
        """
        said = self._said[batch, layer]
        if not said or len(said[0]) != tokens:
            raise WorkloadError(
                f"executor.routing: {self._file} is of another run: of batch {batch} in layer {layer} it has nothing "
                f"for {tokens} tokens; record a run with the same plan and workload"
            )
        choices = np.array(said.popleft())
        return Routing(tuple(np.bincount(choices.ravel(), minlength=self._experts[layer]).tolist()), choices)


def weights_of(shares: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """What to draw k experts by, none twice, so that each comes to about its share [R, E] of all that are drawn.

    Drawn by their shares, the likely ones would be rarer than that, because none can be drawn again. Exact for k = 1;
    for more, as if the others that are drawn took a time that is distributed as the sum of k equal waits.
    """
    chance = np.minimum(k * shares / shares.sum(axis=1, keepdims=True), SURE)
    weights: NDArray[np.float64] = k * (1 - (1 - chance) ** (1 / k))
    return weights


def chances(experts: int, shares: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Each expert's share of what a layer's tokens choose."""
    known = floor(np.ones(experts) if shares is None else shares)
    shares_of_one: NDArray[np.float64] = known / known.sum()
    return shares_of_one


def floor(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """None is quite without a chance."""
    return np.maximum(shares, 1e-9)
