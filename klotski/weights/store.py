"""The memory behind the slots: allocated once, filled by a lane, seen as parameters."""

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from itertools import cycle, groupby
from math import prod
from typing import NamedTuple

import torch

from klotski.core import Block, Residents
from klotski.lanes import Event, Pending
from klotski.weights.carriers import Carrier
from klotski.weights.layout import BlockLayout, ParameterSpec
from klotski.weights.memory import allocate
from klotski.weights.residency import Residency, SlotKind

__all__ = ["DEPTH", "BlockStore", "Stack", "slot_sizes"]

DEPTH = 2  # blocks that are being read: one, and one that waits at the device's door
LOADED = 16  # bytes that a kernel loads at once


class Stack(NamedTuple):
    """Experts of a layer that stay, side by side and laid out alike. `views`: their parameters by name, [R, ...]."""

    experts: tuple[int, ...]
    views: dict[str, torch.Tensor]


class BlockStore:
    """Slots and residents of the device tier.

    All memory is taken from `allocate` here, once: `nbytes` is how much. Residents are brought before the
    first sweep (`load_residents`); the others when `residency` hands out a slot for them. Slots that
    are lent lie in `spare` (uint8, on a page boundary), which belongs to somebody else. `cache`: whether
    slots keep experts for their next use; see `Residency`.
    """

    def __init__(
        self,
        layouts: Mapping[Block, BlockLayout],
        slots: Mapping[SlotKind, int],
        residents: Collection[Block],
        carrier: Carrier,
        spare: torch.Tensor | None = None,
        cache: Residents = Residents.none,
        allocate: Callable[[int], torch.Tensor] = allocate,
    ) -> None:
        self._layouts = layouts
        self._carrier = carrier
        self._slot_bytes = slot_sizes(layouts)
        self._slots = {
            kind: allocate(slots.get(kind, 0) * size).view(slots.get(kind, 0), size)
            for kind, size in self._slot_bytes.items()
        }
        staying = sorted(residents)
        sizes = [layouts[block].slot_bytes for block in staying]
        memory = allocate(sum(sizes))
        places = dict(zip(staying, torch.split(memory, sizes), strict=True))
        self._residents = {block: places[block] for block in residents}  # in the order in which they are brought
        self._stacks = stack(layouts, staying, memory)
        size = self._slot_bytes[SlotKind.EXPERT]
        spare = allocate(0) if spare is None else spare
        lent = len(spare) // size if size else 0
        self._lent = spare[: lent * size].view(lent, size)
        self.residency = Residency(slots, residents, self._bring, lent, cache)

    @property
    def nbytes(self) -> int:
        """Bytes of all slots and residents."""
        return sum(memory.numel() for memory in (*self._slots.values(), *self._residents.values()))

    def load_residents(self) -> None:
        """Read all residents; returns when they are here."""
        for event in [self._carrier.carry(block, memory, ()) for block, memory in self._residents.items()]:
            event.wait()

    def glance(self, block: Block) -> dict[str, torch.Tensor]:
        """A block's parameters before the first sweep; good until the next glance at one of its kind."""
        if block in self._residents:
            return self.views(block)
        slot = self._slot(SlotKind.of(block), 0)
        self._carrier.start(block, slot).wait()
        return self._layouts[block].views_of(slot)

    def streamed_experts(self) -> list[Block]:
        """Experts that come and go."""
        return [block for block in self._layouts if not block.is_dense and block not in self._residents]

    def read_past_lane(self, blocks: Iterator[Block]) -> Generator[int, None, None]:
        """Read block after block into the slots for experts, and yield the bytes of each that has come.

        One is always waiting at the device's door, as on the lane. For measuring: nothing else may be
        using the slots until it is closed.
        """
        under_way: deque[tuple[Pending, int]] = deque()
        try:
            for block, slot in zip(blocks, cycle(self._slots[SlotKind.EXPERT]), strict=False):
                under_way.append((self._carrier.start(block, slot), self._layouts[block].disk_bytes))
                if len(under_way) == min(DEPTH, len(self._slots[SlotKind.EXPERT])):
                    reading, nbytes = under_way.popleft()
                    reading.wait()
                    yield nbytes
        finally:
            for reading, _ in under_way:
                reading.wait()

    def stacks(self, layer: int) -> Sequence[Stack]:
        """Experts of a layer that stay and can be multiplied at once; each is in one stack at most."""
        return self._stacks.get(layer, ())

    def expert_slots(self) -> torch.Tensor:
        """The memory of all slots for experts."""
        return self._slots[SlotKind.EXPERT]

    def views(self, block: Block) -> dict[str, torch.Tensor]:
        """A block's parameters by name, as views of its memory. Valid until it is released."""
        memory = self._residents.get(block)
        if memory is None:
            memory = self._slot(SlotKind.of(block), self.residency.slot(block))
        return self._layouts[block].views_of(memory)

    def _bring(self, block: Block, slot: int, after: Collection[Event]) -> Event:
        return self._carrier.carry(block, self._slot(SlotKind.of(block), slot), after)

    def _slot(self, kind: SlotKind, number: int) -> torch.Tensor:
        own = self._slots[kind]
        return own[number] if number < len(own) else self._lent[number - len(own)]


def stack(
    layouts: Mapping[Block, BlockLayout], staying: Sequence[Block], memory: torch.Tensor
) -> dict[int, list[Stack]]:
    """By layer, experts that lie one behind the other in `memory` and begin each parameter at the same place.

    How far into a page a parameter begins is the file's choice: an expert of another shard may differ. One whose rows
    do not begin where a kernel can load them is in no stack.
    """
    stacks: dict[int, list[Stack]] = {}
    end = 0
    for (layer, is_dense, *_), run in groupby(staying, key=lambda block: alike(block, layouts[block])):
        blocks = list(run)
        begin, end = end, end + sum(layouts[block].slot_bytes for block in blocks)
        layout = layouts[blocks[0]]
        if is_dense or len(blocks) == 1 or not all(is_loadable(*view) for view in layout.views.values()):
            continue
        rows = memory[begin:end].view(len(blocks), -1)
        views = {name: columns(rows, *view) for name, view in layout.views.items()}
        stacks.setdefault(layer, []).append(Stack(tuple(block.expert for block in blocks), views))
    return stacks


def alike(block: Block, layout: BlockLayout) -> tuple[int, bool, int, tuple[int, ...]]:
    """What experts of one stack have in common."""
    return block.layer, block.is_dense, layout.slot_bytes, tuple(offset for offset, _ in layout.views.values())


def is_loadable(offset: int, spec: ParameterSpec) -> bool:
    """Whether a kernel can load rows of a parameter that begins here in its block."""
    return offset % LOADED == 0 and (len(spec.shape) < 2 or spec.shape[-1] * spec.dtype.itemsize % LOADED == 0)


def columns(rows: torch.Tensor, offset: int, spec: ParameterSpec) -> torch.Tensor:
    """A parameter of all blocks [R, ...], each of which is one of `rows` (uint8)."""
    numbers = rows[:, offset : offset + prod(spec.shape) * spec.dtype.itemsize].view(spec.dtype)
    return numbers.view(len(rows), *spec.shape)


def slot_sizes(layouts: Mapping[Block, BlockLayout]) -> dict[SlotKind, int]:
    """Bytes of a slot of each kind: the largest block that it may have to hold."""
    sizes = dict.fromkeys(SlotKind, 0)
    for block, layout in layouts.items():
        kind = SlotKind.of(block)
        sizes[kind] = max(sizes[kind], layout.slot_bytes)
    return sizes
