"""The memory behind the slots: allocated once, filled by a lane, seen as parameters."""

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from itertools import cycle

import torch

from klotski.core import Block, Residents
from klotski.lanes import Event, Pending
from klotski.weights.carriers import Carrier
from klotski.weights.layout import BlockLayout
from klotski.weights.memory import allocate
from klotski.weights.residency import Residency, SlotKind

__all__ = ["DEPTH", "BlockStore", "slot_sizes"]

DEPTH = 2  # blocks that are being read: one, and one that waits at the device's door


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
        sizes = [layouts[block].slot_bytes for block in residents]
        self._residents = dict(zip(residents, torch.split(allocate(sum(sizes)), sizes), strict=True))
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


def slot_sizes(layouts: Mapping[Block, BlockLayout]) -> dict[SlotKind, int]:
    """Bytes of a slot of each kind: the largest block that it may have to hold."""
    sizes = dict.fromkeys(SlotKind, 0)
    for block, layout in layouts.items():
        kind = SlotKind.of(block)
        sizes[kind] = max(sizes[kind], layout.slot_bytes)
    return sizes
