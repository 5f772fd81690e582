"""What routers would say: choices of experts for tokens that nobody computes, drawn or as a run recorded them."""

from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from klotski.core import Routing
from klotski.errors import WorkloadError

__all__ = ["DrawnRouters", "RecordedRouters", "Routers"]

ONE_BY_ONE = 256  # tokens of a batch, at most, each of which chooses; of more, the counts alone are drawn


class Routers(Protocol):
    """Say which experts a batch's tokens choose."""

    def ask(self, batch: int, layer: int, tokens: int) -> Routing:
        """What a layer's router says of so many tokens of a batch."""


class DrawnRouters:
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

    def ask(self, batch: int, layer: int, tokens: int) -> Routing:
        """What a layer's router says of so many tokens; of any batch alike."""
        del batch
        chances = self._chances[layer]
        if tokens > ONE_BY_ONE:
            counts = np.minimum(self._random.multinomial(tokens * self._top_k, chances), tokens)
            return Routing(tuple(counts.tolist()))
        # Who rings first, where the likelier ring more often: k draws without replacement.
        times = self._random.standard_exponential((tokens, len(chances)), dtype=np.float32) / chances.astype(np.float32)
        choices = np.argpartition(times, self._top_k - 1, axis=1)[:, : self._top_k]
        counts = np.bincount(choices.ravel(), minlength=len(chances))
        return Routing(tuple(counts.tolist()), choices)


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


def chances(layer: int, experts: int, shares: Sequence[Sequence[float]] | None) -> NDArray[np.float64]:
    """The chance of each expert of a layer to be a token's first choice; none is quite without."""
    known = np.maximum(np.ones(experts) if shares is None else np.array(shares[layer]), 1e-9)
    shares_of_one: NDArray[np.float64] = known / known.sum()
    return shares_of_one
