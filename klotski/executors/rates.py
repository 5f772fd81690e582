"""What this machine reaches at what a run does: reading blocks, and multiplying matrices.

Measured before the first sweep and after the last, for a fraction of a second at a time, with the
run's own reader, files, slots and shapes; machines are shared, so the median of all is taken.
"""

import time
from collections.abc import Callable
from contextlib import closing
from itertools import cycle
from statistics import median

import torch

from klotski.core import LaneName
from klotski.model import Workspace
from klotski.weights import BlockStore

__all__ = ["RateSamples"]

ROUNDS = 4  # before the run, and again after it; reading and multiplying take turns
SECONDS = 0.25  # of each


class RateSamples:
    """Of the rates of one machine: bytes a second by disk, operations a second by compute."""

    def __init__(self, store: BlockStore, workspace: Workspace) -> None:
        self._blocks = cycle(store.streamed_experts())
        self._store = store
        self._space = workspace
        self._samples: dict[str, list[float]] = {LaneName.DISK: [], LaneName.COMPUTE: []}

    def measure(self) -> dict[str, float]:
        """Take samples, and return the median of all so far. No sweep may be under way."""
        with torch.inference_mode():
            for _ in range(ROUNDS):
                self._samples[LaneName.DISK].append(self._reading())
                self._samples[LaneName.COMPUTE].append(self._multiplying())
        return {lane: median(samples) for lane, samples in self._samples.items()}

    def _reading(self) -> float:
        with closing(self._store.read_past_lane(self._blocks)) as blocks:
            return rate(lambda: next(blocks, 0), SECONDS)

    def _multiplying(self) -> float:
        """The larger product of an expert, with one slot's bytes after the other: in a run, too, weights are new."""
        tokens, out = self._space.gathered, self._space.inside
        numbers = tokens.shape[1] * out.shape[1]
        slots = [slot.view(tokens.dtype)[:numbers] for slot in self._store.expert_slots()]
        matrices = cycle(slot.view(out.shape[1], tokens.shape[1]) for slot in slots)
        tokens.fill_(1)

        def multiply() -> int:
            torch.mm(tokens, next(matrices).t(), out=out)
            return 2 * len(tokens) * numbers

        multiply()  # the first one makes its kernel
        return rate(multiply, SECONDS)


def rate(work: Callable[[], int], seconds: float) -> float:
    """What `work` returns, added up for so many seconds, a second."""
    begin = time.perf_counter()
    done = 0
    while (elapsed := time.perf_counter() - begin) < seconds:
        done += work()
    return done / elapsed
