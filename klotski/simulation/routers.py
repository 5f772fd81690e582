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
        self._chances = [chances(count, table.shares[layer] if table else None) for layer, count in enumerate(experts)]
        self._rows = [
            floor(table.rows(layer)) if table and table.pairs[layer].any() else None for layer in range(len(experts))
        ]
        self._last: dict[int, tuple[int, NDArray[Any]]] = {}  # of each batch, the layer that it chose in last, and what

    def ask(self, batch: int, layer: int, tokens: int) -> Routing:
        """What a layer's router says of so many tokens of a batch."""
        if tokens > ONE_BY_ONE:
            self._last.pop(batch, None)
            counts = self._random.multinomial(tokens * self._top_k, self._chances[layer])
            return Routing(tuple(np.minimum(counts, tokens).tolist()))
        weights = self._weights(batch, layer, tokens)
        # Who rings first, where the likelier ring more often: k draws without replacement.
        times = self._random.standard_exponential((tokens, weights.shape[-1]), dtype=np.float32) / weights
        choices = np.argpartition(times, self._top_k - 1, axis=1)[:, : self._top_k]
        counts = np.bincount(choices.ravel(), minlength=weights.shape[-1])
        if self._table is not None:
            self._last[batch] = layer, choices
        return Routing(tuple(counts.tolist()), choices)

    def _weights(self, batch: int, layer: int, tokens: int) -> NDArray[np.float32]:
        """How likely each expert is, to each token: [T, E], or to all alike: [E]."""
        before, choices = self._last.get(batch, (None, None))
        rows = self._rows[layer]
        if self._table is None or choices is None or rows is None or before != self._table.before[layer]:
            return self._chances[layer].astype(np.float32)
        if len(choices) != tokens:  # the last layer sees a prompt's last tokens alone
            return self._chances[layer].astype(np.float32)
        followed = choices[np.arange(tokens), self._random.integers(0, choices.shape[1], tokens)]
        weights: NDArray[np.float32] = rows[followed].astype(np.float32)
        return weights


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


def chances(experts: int, shares: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """The chance of each expert of a layer to be a token's first choice."""
    known = floor(np.ones(experts) if shares is None else shares)
    shares_of_one: NDArray[np.float64] = known / known.sum()
    return shares_of_one


def floor(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """None is quite without a chance."""
    return np.maximum(shares, 1e-9)
