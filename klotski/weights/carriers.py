"""How blocks come to the device's memory: from disk, or from CPU memory below it.

A carrier is what `BlockStore` fills a slot or a resident's memory with. Where the device tier is CPU
memory there is one way, straight from disk. Below a GPU some blocks lie in CPU memory for the whole
run, pinned; the others come from disk through a window there.
"""

from collections.abc import Callable, Collection, Mapping, Set
from functools import partial
from typing import Protocol

import torch

from klotski.core import Block, Operation
from klotski.lanes import Event, Lane, Pending
from klotski.weights.layout import BlockLayout
from klotski.weights.residency import SlotKind
from klotski.weights.window import Window

__all__ = ["Carrier", "FromDisk", "Source", "ThroughHost"]


class Source(Protocol):
    """Where blocks come from; see `Reader`."""

    def start(self, layout: BlockLayout, slot: torch.Tensor) -> Pending:
        """Begin to fill a slot with a block."""

    def read(self, layout: BlockLayout, slot: torch.Tensor) -> None:
        """Fill a slot with a block."""

    def close(self) -> None:
        """Give back what it holds."""


class Carrier(Protocol):
    """Brings blocks to where arithmetic happens."""

    @property
    def below(self) -> Set[Block]:
        """Blocks that lie in CPU memory on the way, for the whole run."""

    def carry(self, block: Block, memory: torch.Tensor, after: Collection[Event]) -> Event:
        """Begin to fill memory of the device (uint8) with a block, after these events."""

    def start(self, block: Block, memory: torch.Tensor) -> Pending:
        """The same, past the lanes, while they are at rest."""

    def views_below(self, block: Block) -> dict[str, torch.Tensor]:
        """The parameters, by name, of a block that lies there."""


class FromDisk:
    """Blocks are read to where they are used."""

    below: Set[Block] = frozenset()

    def __init__(self, layouts: Mapping[Block, BlockLayout], source: Source, disk: Lane) -> None:
        self._layouts = layouts
        self._source = source
        self._disk = disk

    def carry(self, block: Block, memory: torch.Tensor, after: Collection[Event]) -> Event:
        """Read a block; see `Carrier`."""
        layout = self._layouts[block]
        return self._disk.submit(
            moved(block, layout.disk_bytes), lambda: self._source.start(layout, memory), tuple(after)
        )

    def start(self, block: Block, memory: torch.Tensor) -> Pending:
        """Begin to read a block past the lane."""
        return self._source.start(self._layouts[block], memory)

    def views_below(self, block: Block) -> dict[str, torch.Tensor]:
        """Never called: nothing lies between the disk and where it is used."""
        raise NotImplementedError


class ThroughHost:
    """Blocks come from CPU memory, where `on_host` stay and the others pass through a window.

    `allocate`: memory of the host that the device can copy from. All of it is taken here, once. `window`: reads ahead.
    `copy`: fills memory of the device with that of the host, in the order of the lane that it is called on.
    """

    def __init__(
        self,
        layouts: Mapping[Block, BlockLayout],
        on_host: Collection[Block],
        places: int,
        source: Source,
        disk: Lane,
        link: Lane,
        allocate: Callable[[int], torch.Tensor],
        copy: Callable[[torch.Tensor, torch.Tensor], object],
    ) -> None:
        self._layouts = layouts
        self._source = source
        self._disk = disk
        self._link = link
        self._copy = copy
        sizes = [layouts[block].slot_bytes for block in on_host]
        self._host = dict(zip(on_host, torch.split(allocate(sum(sizes)), sizes), strict=True))
        largest = max(layout.slot_bytes for layout in layouts.values())
        self._places = allocate(places * largest).view(places, largest)
        self.window = Window(places, disk, link, self._is_on_disk, self._operation, self._read)

    @property
    def below(self) -> Set[Block]:
        """The blocks that stay in CPU memory."""
        return self._host.keys()

    @property
    def nbytes(self) -> int:
        """Bytes of CPU memory that were taken."""
        return sum(memory.numel() for memory in self._host.values()) + self._places.numel()

    def load(self) -> None:
        """Read all blocks that stay on the host; returns when they are there."""
        reading = []
        for block, memory in self._host.items():
            layout = self._layouts[block]
            operation = moved(block, layout.disk_bytes)
            reading.append(self._disk.submit(operation, partial(self._source.start, layout, memory)))
        for event in reading:
            event.wait()

    def carry(self, block: Block, memory: torch.Tensor, after: Collection[Event]) -> Event:
        """Copy a block; see `Carrier`."""
        layout = self._layouts[block]
        if (here := self._host.get(block)) is not None:
            return self._link.submit(self._operation(block), lambda: self._fill(memory, here, layout), tuple(after))
        return self.window.carry(block, lambda place: self._fill(memory, self._places[place], layout), after)

    def start(self, block: Block, memory: torch.Tensor) -> Pending:
        """Fill memory past the lanes."""
        layout = self._layouts[block]
        here = self._host.get(block)
        if here is None:
            here = self._places[0]
            self._source.read(layout, here)
        self._fill(memory, here, layout)
        return Filled()

    def views_below(self, block: Block) -> dict[str, torch.Tensor]:
        """A block's parameters where it stays in CPU memory."""
        return self._layouts[block].views_of(self._host[block])

    def _is_on_disk(self, block: Block) -> bool:
        return block not in self._host

    def _operation(self, block: Block) -> Operation:
        return moved(block, self._layouts[block].slot_bytes)

    def _read(self, block: Block, place: int) -> Pending:
        return self._source.start(self._layouts[block], self._places[place])

    def _fill(self, memory: torch.Tensor, here: torch.Tensor, layout: BlockLayout) -> None:
        self._copy(memory[: layout.slot_bytes], here[: layout.slot_bytes])


class Filled:
    """A block that is there already."""

    def wait(self) -> None:
        """Return at once."""


def moved(block: Block, nbytes: int) -> Operation:
    """The operation that moves a block."""
    return Operation(SlotKind.of(block), block.layer, block.expert, nbytes=nbytes)
