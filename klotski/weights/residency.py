"""Which blocks are here, which are on their way, and which slot each has.

Bookkeeping only: no memory, no I/O, no torch. A block is absent, coming, or here. Residents are
here for the whole run. The others come with `request` and go with `release`; a slot that was
released may be refilled once the last use of the block in it has ended.

Where slots are a cache (`lru`, `lfu`), an expert that was released stays until its slot is wanted
for another; `claim` takes it into use again before that happens.

Some slots for experts may be lent: their memory is needed for something else at times. They are
used between `lend` and `withdraw` only, and what lies in them then is lost.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from enum import StrEnum

from klotski.core import DENSE, Block, Residents
from klotski.lanes import Event

__all__ = ["Bring", "Residency", "SlotKind"]


class SlotKind(StrEnum):
    """Slots are of two sizes."""

    DENSE = "dense"
    EXPERT = "expert"

    @classmethod
    def of(cls, block: Block) -> "SlotKind":
        """The kind of slot that a block needs."""
        return _DENSE if block.expert == DENSE else _EXPERT


_DENSE, _EXPERT = SlotKind  # looked up for every block

Bring = Callable[[Block, int, Collection[Event]], Event]
"""(block, slot, events to wait for) -> the block's arrival; starts the transfer. Blocks arrive in the order in which
they are sent for: the last lane on their way is one."""


class Residency:
    """Hands out slots; see the module's docstring for the life of a block."""

    def __init__(
        self,
        slots: Mapping[SlotKind, int],
        residents: Collection[Block],
        bring: Bring,
        lent: int = 0,
        cache: Residents = Residents.none,
    ) -> None:
        """`lent`: slots for experts beyond those of `slots`, not lent yet; their numbers come last.

        `cache`: `lru` or `lfu`, which of the experts that nobody uses gives its slot to another; all else: none stays.
        """
        self._bring = bring
        self._residents = frozenset(residents)
        self._resident_experts: dict[int, set[int]] = defaultdict(set)
        for layer, expert in self._residents:
            self._resident_experts[layer] |= {expert} - {DENSE}
        self._slots: dict[Block, int] = {}
        self._arrivals: dict[int, dict[Block, Event]] = defaultdict(dict)  # by layer
        # A free slot, with the event after which it may be overwritten. First freed, first used:
        # its last use is the likeliest to have ended.
        self._free: dict[SlotKind, deque[tuple[int, tuple[Event, ...]]]] = {
            kind: deque((slot, ()) for slot in range(slots.get(kind, 0))) for kind in SlotKind
        }
        self._count = {kind: slots.get(kind, 0) for kind in SlotKind}
        self._withdrawn = list(range(self._count[SlotKind.EXPERT], self._count[SlotKind.EXPERT] + lent))
        self._lent: list[int] = []
        self._cache = cache
        self._is_cache = cache in (Residents.lru, Residents.lfu)
        self._kept: dict[Block, Event] = {}  # released, and still here: the longest unused first, with its last use
        self._uses: Counter[Block] = Counter()

    def resident_experts(self, layer: int) -> Set[int]:
        """The experts of a layer that stay for the whole run."""
        return self._resident_experts[layer]

    def is_known(self, block: Block) -> bool:
        """Whether the block is here or coming."""
        return block in self._residents or block in self._slots

    def has_free_slot(self, block: Block) -> bool:
        """Whether `request` of this block could be answered now."""
        if block.expert == DENSE:
            return bool(self._free[_DENSE])
        return bool(self._free[_EXPERT] or self._kept)

    def request(self, block: Block) -> None:
        """Send for a block that is absent, into a slot that is free, or whose block nobody uses."""
        assert block not in self._slots and block not in self._residents, f"{block} was sent for twice"
        free = self._free[_DENSE if block.expert == DENSE else _EXPERT]
        if not free:
            self._free_slot(self._least_wanted())
        slot, uses = free.popleft()
        self._slots[block] = slot
        self._arrivals[block.layer][block] = self._bring(block, slot, uses)

    def claim(self, block: Block) -> bool:
        """Take a block into use that was released and is still here; False if it is not such a one."""
        return self._kept.pop(block, None) is not None

    def arrival(self, block: Block) -> tuple[Event, ...]:
        """What a use of the block has to wait for."""
        return () if block in self._residents else (self._arrivals[block.layer][block],)

    def arrived(self, layer: int) -> list[int]:
        """A layer's experts that were sent for and have come, first arrival first."""
        found = []
        for block, arrival in self._arrivals[layer].items():
            if block.expert != DENSE:
                if not arrival.is_done():
                    break
                found.append(block.expert)
        return found

    def coming(self, layer: int) -> Iterator[int]:
        """Those that are on their way, next arrival first."""
        all_here = True
        for block, arrival in self._arrivals[layer].items():
            if block.expert != DENSE:
                all_here = all_here and arrival.is_done()
                if not all_here:
                    yield block.expert

    def slot(self, block: Block) -> int:
        """The slot of a block that was requested and not released."""
        return self._slots[block]

    def release(self, block: Block, last_use: Event | None = None) -> None:
        """Give up a block after `last_use` (None: it was never used). Residents stay, and so may what a cache keeps."""
        if block in self._residents:
            return
        assert block not in self._kept, f"{block} was released twice"
        after = last_use or self._arrivals[block.layer][block]
        if block.expert == DENSE or not self._is_cache:
            self._empty(block, after)
            return
        self._kept[block] = after
        if last_use is not None:
            self._uses[block] += 1

    def clear(self) -> None:
        """Give up all that a cache keeps."""
        for block in list(self._kept):
            self._free_slot(block)

    def _least_wanted(self) -> Block:
        """Of what a cache keeps, what has been used least often, or else what has not been used for longest."""
        if self._cache is Residents.lfu:
            return min(self._kept, key=self._uses.__getitem__)
        return next(iter(self._kept))

    def _free_slot(self, block: Block) -> None:
        """Give the slot of a block that a cache keeps to whoever comes next, after its last use."""
        self._empty(block, self._kept.pop(block))

    def _empty(self, block: Block, last_use: Event) -> None:
        del self._arrivals[block.layer][block]
        self._free[_DENSE if block.expert == DENSE else _EXPERT].append((self._slots.pop(block), (last_use,)))

    def lend(self, after: Collection[Event] = ()) -> None:
        """Let the lent slots be used after these events; nothing if they are already."""
        self._free[SlotKind.EXPERT].extend((slot, tuple(after)) for slot in self._withdrawn)
        self._lent += self._withdrawn
        self._withdrawn = []

    def withdraw(self) -> frozenset[Block]:
        """Take the lent slots out of use, once nobody uses or fills one; returns what was sent for and is lost."""
        inside = [block for block, slot in self._slots.items() if slot in self._lent and not block.is_dense]
        lost = frozenset(inside) - self._kept.keys()
        for block in lost:
            self.release(block)
        for block in [block for block in inside if block in self._kept]:
            self._free_slot(block)
        free = self._free[SlotKind.EXPERT]
        for slot, events in [entry for entry in free if entry[0] in self._lent]:
            for event in events:
                event.wait()
            free.remove((slot, events))
        self._withdrawn += self._lent
        self._lent = []
        return lost

    def held(self) -> frozenset[Block]:
        """Blocks that were sent for and not released; residents apart."""
        return frozenset(self._slots) - self._kept.keys()

    def wait_for_free_slots(self) -> None:
        """Return when no free slot is still being filled or used."""
        for free in self._free.values():
            for _, events in free:
                for event in events:
                    event.wait()

    def check_integrity(self) -> None:
        """Assert that every slot is either free or holds exactly one block."""
        for kind, free in self._free.items():
            held = [slot for block, slot in self._slots.items() if SlotKind.of(block) is kind]
            lent = self._lent if kind is SlotKind.EXPERT else []
            assert sorted([*held, *(slot for slot, _ in free)]) == [*range(self._count[kind]), *lent], kind
        assert self._slots.keys() == {block for arrivals in self._arrivals.values() for block in arrivals}
        assert self._kept.keys() <= self._slots.keys()
