"""Keys and values in CPU memory below a device: the next batch's come while this one computes, new ones go back."""

from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, cast
from weakref import WeakKeyDictionary

import torch

from klotski.core import Operation
from klotski.executors.devices import Device
from klotski.lanes import Event, Lane
from klotski.model import GenerationBatch, MovingLayer
from klotski.pipeline import Batch

__all__ = ["MovingCaches"]

KIND = "kv"  # of operations

Pieces = Sequence[tuple[torch.Tensor, torch.Tensor]]


class Lent(NamedTuple):
    """A slot in use: whose layer has it (None: one that keeps what it has on the device), and what to wait for."""

    batch: int
    number: int
    layer: MovingLayer | None
    slot: torch.Tensor
    arrival: tuple[Event, ...]


class MovingCaches:
    """Caches that are moved, through `slots` slots of `nbytes` on the device; see `pipeline.Caches`."""

    def __init__(self, slots: int, nbytes: int, device: Device, inward: Lane, outward: Lane) -> None:
        self.ahead = slots - 1
        self._device = device
        self._inward = inward
        self._outward = outward
        memory = device.allocate(slots * nbytes).view(slots, nbytes)
        self._free: deque[tuple[torch.Tensor, tuple[Event, ...]]] = deque((slot, ()) for slot in memory)
        self._lent: deque[Lent] = deque()
        # When what a layer of a batch sent back last is there; forgotten with the batch.
        self._home: WeakKeyDictionary[MovingLayer, Event] = WeakKeyDictionary()

    def bring(self, batch: Batch, layer: int) -> None:
        """Begin to bring what a batch keeps of a layer, into the slot that has been free for longest."""
        slot, arrival = self._free.popleft()
        kept = cast("GenerationBatch", batch).cache.layers[layer]
        moving = kept if isinstance(kept, MovingLayer) else None
        if moving is not None:
            moving.lend(slot)
            home = self._home.pop(moving, None)
            if home is not None:
                pieces = moving.ahead
                operation = Operation(KIND, layer, batch=batch.index, nbytes=sum(to.nbytes for to, _ in pieces))
                arrival = (self._inward.submit(operation, partial(self._copy, pieces), (*arrival, home)),)
        self._lent.append(Lent(batch.index, layer, moving, slot, arrival))

    def arrival(self, batch: Batch) -> tuple[Event, ...]:
        """What the batch's attention has to wait for."""
        assert self._lent[0].batch == batch.index, "caches are used in the order in which they were brought"
        return self._lent[0].arrival

    def release(self, batch: Batch, use: Event) -> None:
        """After `use`, what the batch's tokens added goes back."""
        lent = self._lent.popleft()
        after = use
        if lent.layer is not None:
            pieces = lent.layer.behind
            operation = Operation(KIND, lent.number, batch=lent.batch, nbytes=sum(to.nbytes for to, _ in pieces))
            after = self._outward.submit(operation, partial(self._copy, pieces), (use,))
            self._home[lent.layer] = after
            lent.layer.recall()
        self._free.append((lent.slot, (after,)))

    def close(self) -> None:
        """No batch is under way any more."""
        assert not self._lent, "something was brought that nobody used"

    def _copy(self, pieces: Pieces) -> None:
        with torch.inference_mode():  # in which the batches took the memory, on another thread
            for target, source in pieces:
                self._device.copy(target, source)
