"""What has no room in CPU memory below a device goes through it: from disk into a place of a window, and on.

A block is read when it is sent for, or before that: the disk goes on with what is expected next while the device has no
slot for it, and while routers have not spoken.

Bookkeeping only, over lanes: on those of a machine it moves blocks, on virtual ones it predicts them.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable
from functools import partial

from klotski.core import Block, Operation
from klotski.lanes import Event, Lane

__all__ = ["Window"]

EARLY = 512 << 20  # bytes that the disk may be given early: what is asked for meanwhile has to wait for them
FEWEST = 2  # blocks of any size


class Window:
    """So many places, each of which is read into once what was in it has gone on.

    `passes`: whether a block comes through here. `operation`: what moving it is called. `read`: begins to read it into
    a place. As `pipeline.Ahead` it reads what is expected.
    """

    def __init__(
        self,
        places: int,
        disk: Lane,
        link: Lane,
        passes: Callable[[Block], bool],
        operation: Callable[[Block], Operation],
        read: Callable[[Block, int], object],
    ) -> None:
        self._places = places
        self._disk = disk
        self._link = link
        self._passes = passes
        self._operation = operation
        self._read = read
        # A free place, and after what it may be overwritten: the one that is free for longest comes first.
        self._free: deque[tuple[int, tuple[Event, ...]]] = deque((place, ()) for place in range(places))
        self._urgent: dict[Block, None] = {}
        self._expected: dict[Block, None] = {}
        self._here: dict[Block, tuple[int, Event]] = {}  # read before they were sent for, or being read
        self._early: deque[tuple[Event, int]] = deque()  # reads that were begun early, and their bytes
        self._early_bytes = 0

    @property
    def has_room(self) -> bool:
        """Whether more could be read early than is expected so far."""
        return len(self._expected) + len(self._here) < self._places

    def expect(self, blocks: Iterable[Block], *, is_urgent: bool = False) -> None:
        """These will be sent for, in this order: after all that was expected before, or before it."""
        queue = self._urgent if is_urgent else self._expected
        queue.update((block, None) for block in blocks if self._passes(block) and block not in self._here)

    def read_on(self) -> None:
        """Begin to read what is expected, behind all that was sent for, if there is a place; not much at a time."""
        while self._free and (queue := self._urgent or self._expected):
            place, gone = self._free[0]
            if self._has_enough() or not all(event.is_done() for event in gone):
                return
            block = next(iter(queue))
            self._unexpect(block)
            self._free.popleft()
            there = self._begin(block, place, gone)
            self._here[block] = place, there
            nbytes = self._operation(block).nbytes
            self._early.append((there, nbytes))
            self._early_bytes += nbytes

    def carry(self, block: Block, lift: Callable[[int], object], after: Collection[Event]) -> Event:
        """Bring a block through a place, and `lift` it from there after these events."""
        place, there = self._here.pop(block) if block in self._here else self._fetch(block)
        arrival = self._link.submit(self._operation(block), partial(lift, place), (there, *after))
        self._free.append((place, (arrival,)))
        return arrival

    def forget(self, layer: int) -> None:
        """What was expected of a layer, and has not been sent for, will not be."""
        for queue in (self._urgent, self._expected):
            for block in [block for block in queue if block.layer == layer]:
                del queue[block]
        for block in [block for block in self._here if block.layer == layer]:
            self._give_up(block)

    def close(self) -> None:
        """Nothing is expected any more; returns when nothing is being read."""
        self._urgent.clear()
        self._expected.clear()
        for block in list(self._here):
            self._give_up(block)
        for _, gone in self._free:
            for event in gone:
                event.wait()
        assert sorted(place for place, _ in self._free) == list(range(self._places)), "a place was lost"

    def _has_enough(self) -> bool:
        """Whether the disk has been given as much early as it may be."""
        early = self._early
        if len(early) < FEWEST or self._early_bytes < EARLY:
            return False
        while early and early[0][0].is_done():
            self._early_bytes -= early.popleft()[1]
        return len(early) >= FEWEST and self._early_bytes >= EARLY

    def _fetch(self, block: Block) -> tuple[int, Event]:
        """Read what was not read early; if all places are taken, into that of what is needed last."""
        self._unexpect(block)
        if not self._free:
            self._give_up(next(reversed(self._here)))
        place, gone = self._free.popleft()
        return place, self._begin(block, place, gone)

    def _begin(self, block: Block, place: int, gone: Collection[Event]) -> Event:
        return self._disk.submit(self._operation(block), partial(self._read, block, place), tuple(gone))

    def _give_up(self, block: Block) -> None:
        place, there = self._here.pop(block)
        self._free.append((place, (there,)))

    def _unexpect(self, block: Block) -> None:
        self._urgent.pop(block, None)
        self._expected.pop(block, None)
