"""What this machine reaches at what a run does: reading blocks, and multiplying matrices.

Measured before the first sweep and after the last, for a fraction of a second at a time, with the
run's own reader, files, slots and shapes; machines are shared, so the median of all is taken.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import cycle, islice
from statistics import median

import torch

from klotski.core import STEP, LaneName
from klotski.executors.devices import Device
from klotski.model import ROWS, Workspace
from klotski.weights.store import BlockStore

__all__ = ["RateSamples"]

ROUNDS = 4  # before the run, and again after it; reading and multiplying take turns
SECONDS = 0.25  # of each
FEW_SECONDS = 0.1  # of products of few rows
SINGLE = 3  # blocks, read each after a rest, and then in a row
REST = 5e-3  # seconds
SLEEP = 8e-3  # seconds, after which the cores sleep
WAKING = 8  # products, each after such a rest
LEAST = 1e-6  # seconds: a clock's
MOST = 0.95  # of the time of a product of few rows, that its rows may take, whatever the samples say


class RateSamples:
    """Of the rates of one machine: bytes a second by disk, operations a second by compute."""

    def __init__(self, store: BlockStore, workspace: Workspace, device: Device) -> None:
        self._device = device
        self._way = LaneName.LINK if device.has_host_tier else LaneName.DISK
        self._blocks = cycle(store.streamed_experts())
        self._store = store
        self._space = workspace
        self._samples: dict[str, list[float]] = {self._way: [], LaneName.COMPUTE: []}
        self._starts: list[float] = []
        self._products: list[float] = []
        self._wakes: list[float] = []

    @property
    def start(self) -> float:
        """Seconds that one block takes longer to be read if the disk was at rest."""
        return median(self._starts)

    @property
    def product(self) -> float:
        """Bytes a second at which weights come into a product, beside what its rows take."""
        return median(self._products)

    @property
    def wake(self) -> float:
        """Seconds that a product takes longer once the cores have rested."""
        return max(0.0, median(self._wakes))

    def measure(self) -> dict[str, float]:
        """Take samples, and return the median of all so far. No sweep may be under way."""
        with torch.inference_mode():
            for _ in range(ROUNDS):
                self._starts.append(self._starting())
                self._samples[self._way].append(self._reading())
                many, few = self._multiplying(ROWS, SECONDS), self._multiplying(STEP, FEW_SECONDS)
                self._samples[LaneName.COMPUTE].append(many)
                self._products.append(weights_rate(few, many, self._space.gathered.itemsize))
                self._wakes.append(self._waking())
        return {lane: median(samples) for lane, samples in self._samples.items()}

    def _reading(self) -> float:
        with closing(self._store.read_past_lane(self._blocks)) as blocks:
            return rate(lambda: self._next(blocks), SECONDS)

    def _next(self, blocks: Iterator[int]) -> int:
        nbytes = next(blocks, 0)
        self._device.wait()
        return nbytes

    def _starting(self) -> float:
        """Seconds that a block takes longer after a rest than behind another one."""
        single = 0.0
        for _ in range(SINGLE):
            time.sleep(REST)
            single += self._seconds(1)
        return max(LEAST, (single - self._seconds(SINGLE)) / (SINGLE - 1))  # those in a row have a first one, too

    def _seconds(self, count: int) -> float:
        """That the next blocks take, one behind the other."""
        begin = time.perf_counter()
        with closing(self._store.read_past_lane(islice(self._blocks, count))) as blocks:
            sum(blocks)
        return time.perf_counter() - begin

    def _waking(self) -> float:
        """Seconds that a product of few tokens takes longer after a rest than behind another one."""
        multiply = self._multiplier(STEP)
        seconds: dict[float, list[float]] = {0.0: [], SLEEP: []}
        for rest in [0.0] * WAKING + [SLEEP] * WAKING:
            time.sleep(rest)
            begin = time.perf_counter()
            multiply()
            seconds[rest].append(time.perf_counter() - begin)
        return median(seconds[SLEEP]) - median(seconds[0.0])

    def _multiplying(self, rows: int, seconds: float) -> float:
        """Operations a second."""
        return rate(self._multiplier(rows), seconds)

    def _multiplier(self, rows: int) -> Callable[[], int]:
        """The larger product of an expert, with one slot's bytes after the other: in a run, too, weights are new.

        Returns its operations, once it is done.
        """
        tokens, out = self._space.gathered[:rows], self._space.inside[:rows]
        numbers = tokens.shape[1] * out.shape[1]
        slots = [slot.view(tokens.dtype)[:numbers] for slot in self._store.expert_slots()]
        matrices = cycle(slot.view(out.shape[1], tokens.shape[1]) for slot in slots)
        tokens.fill_(1)

        def multiply() -> int:
            torch.mm(tokens, next(matrices).t(), out=out)
            self._device.wait()
            return 2 * len(tokens) * numbers

        multiply()  # the first one makes its kernel
        return multiply


def weights_rate(few: float, many: float, itemsize: int, rows: int = STEP) -> float:
    """Bytes a second at which weights come into a product, beside what its rows take.

    `few`, `many`: operations a second of products of so few `rows`, and of as many as make no difference any more. What
    a product takes is a line: so long for each row, and so long whatever the rows.
    """
    seconds = 2 * rows * max(1 / few - 1 / many, (1 - MOST) / few)  # of one of its weights
    return itemsize / seconds


def rate(work: Callable[[], int], seconds: float) -> float:
    """What `work` returns, added up for so many seconds, a second."""
    begin = time.perf_counter()
    done = 0
    while (elapsed := time.perf_counter() - begin) < seconds:
        done += work()
    return done / elapsed
