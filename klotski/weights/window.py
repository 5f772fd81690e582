"""What has no room in CPU memory below a device goes through it: from disk into a place of a window, and on.

Bookkeeping only, over lanes: on those of a machine it moves blocks, on virtual ones it predicts them.
"""

from collections.abc import Callable, Collection
from functools import partial

from klotski.core import Operation
from klotski.lanes import Event, Lane

__all__ = ["Window"]


class Window:
    """So many places, each of which is read into once what was in it has gone on."""

    def __init__(self, places: int, disk: Lane, link: Lane) -> None:
        self._disk = disk
        self._link = link
        self._gone: list[tuple[Event, ...]] = [()] * places
        self._next = 0

    def carry(
        self,
        operation: Operation,
        read: Callable[[int], object],
        lift: Callable[[int], object],
        after: Collection[Event],
    ) -> Event:
        """Bring a block through the next place: `read` it there, and `lift` it from there after `after`."""
        place, self._next = self._next, (self._next + 1) % len(self._gone)
        there = self._disk.submit(operation, partial(read, place), self._gone[place])
        arrival = self._link.submit(operation, partial(lift, place), (there, *after))
        self._gone[place] = (arrival,)
        return arrival
