"""A GPU's three tiers in CPU memory, with lanes that are late at random and memory that is poisoned.

Every transfer waits for a random while before it begins and in its middle, so that lanes overtake
each other in any way that their contract allows. What a slot held is overwritten with bytes that are
no number (in bfloat16 and float32 alike) as soon as it is given up, and again where a transfer into it
begins: an early use, and a late free, come out as NaN.
"""

import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch

from klotski.core import Block, LaneName, Operation
from klotski.executors.caches import CachePlaces
from klotski.lanes import Clock, Event, InlineLane, Lane, SpanSink, ThreadLane
from klotski.weights import Residency, SlotKind
from klotski.weights.memory import allocate
from klotski.weights.store import BlockStore

__all__ = ["DelayedDevice", "PoisonedPlaces", "PoisonedStore"]

NOT_A_NUMBER = 0xFF


class DelayedLane(Lane):
    """A thread that dawdles."""

    def __init__(self, name: str, sink: SpanSink, clock: Clock, dawdle: Callable[[], None]) -> None:
        super().__init__(name, sink, clock)
        self._thread = ThreadLane(name, sink, clock)
        self._dawdle = dawdle

    def submit(self, operation: Operation, run: Callable[[], object], after: Sequence[Event] = ()) -> Event:
        def later() -> object:
            self._dawdle()
            return run()

        return self._thread.submit(operation, later, after)

    def close(self) -> None:
        self._thread.close()


class DelayedDevice:
    """See the module; `executors.Device`. `longest`: seconds of a transfer's delay, at most."""

    place = torch.device("cpu")
    has_host_tier = True
    cache_blocking = False

    def __init__(self, seed: int, longest: float = 5e-4) -> None:
        self._random = Random(seed)
        self._longest = longest
        self._own: list[torch.Tensor] = []
        self._limit = 1 << 62
        self.copied = {"in": 0, "out": 0}  # bytes

    def memory(self) -> tuple[int, str] | None:
        return None

    def limit(self, nbytes: int, runtime: int) -> None:
        self._limit = nbytes - runtime
        self._own.clear()  # a run begins, and the one before has given back what was its

    def taken(self) -> int | None:
        return None

    def lanes(self, clock: Clock) -> Callable[[LaneName, SpanSink], Lane]:
        def lane(name: LaneName, sink: SpanSink) -> Lane:
            if name is LaneName.COMPUTE:
                return InlineLane(name, sink, clock)
            return DelayedLane(name, sink, clock, self._dawdle)

        return lane

    def allocate(self, nbytes: int) -> torch.Tensor:
        memory = allocate(nbytes).fill_(NOT_A_NUMBER)
        self._own.append(memory)
        assert sum(own.nbytes for own in self._own) <= self._limit, "more was taken than was planned"
        return memory

    def allocate_host(self, nbytes: int) -> torch.Tensor:
        return allocate(nbytes).fill_(NOT_A_NUMBER)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        is_inward = self._is_own(target)
        assert is_inward != self._is_own(source), "a copy goes from one tier to another"
        self.copied["in" if is_inward else "out"] += source.nbytes
        poison(target)
        self._dawdle()
        target.copy_(source)
        if not is_inward:
            poison(source)  # it is the slot's last use

    def multiplies_together(self, dtype: torch.dtype) -> bool:
        return True

    def wait(self) -> None:
        pass

    def _is_own(self, memory: torch.Tensor) -> bool:
        return any(
            own.data_ptr() <= memory.data_ptr() < own.data_ptr() + max(1, own.nbytes) for own in self._own if own.nbytes
        )

    def _dawdle(self) -> None:
        # Three in four come at once: what is never late is as good a test as what always is.
        if self._random.random() < 0.25:
            time.sleep(self._random.random() * self._longest)


class PoisonedStore(BlockStore):
    """Overwrites a slot when its block is given up."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.residency.__class__ = _PoisonedResidency
        assert isinstance(self.residency, _PoisonedResidency)
        self.residency.poison = lambda block, slot: poison(self._slot(SlotKind.of(block), slot))


class _PoisonedResidency(Residency):
    poison: Callable[[Block, int], object]

    def _free_slot(self, block: Block) -> None:
        if self.arrival(block)[0].is_done():  # what is still coming poisons the slot itself
            self.poison(block, self.slot(block))
        super()._free_slot(block)


class PoisonedPlaces(CachePlaces):
    """Overwrites what the batch before it has left to another one."""

    def take(self, owner: Any) -> torch.Tensor:
        place = super().take(owner)
        poison(place)
        return place


def poison(memory: torch.Tensor) -> None:
    """Make it no number."""
    if memory.is_contiguous():
        memory.view(torch.uint8).fill_(NOT_A_NUMBER)
    else:
        memory.fill_(float("nan"))
