"""How much has been done up to each moment, in little memory however long that goes on."""

from array import array
from bisect import bisect_right
from dataclasses import dataclass, field

__all__ = ["Curve"]

GRAIN = 192  # of a point's age: points that are closer than such a part of it are not told apart
MORE = 1500  # points that come until those that are too close are given up
LEAST = 1e-9  # seconds


def numbers() -> "array[float]":
    """None yet."""
    return array("d")


@dataclass(slots=True)
class Curve:
    """Seconds of work and bytes, summed: a curve through points, straight between them.

    A lane's operations come one after the other, each with two points: nothing is lost between them. Points
    become sparse as they age, so that any time up to now is known to half a percent of its length.
    """

    times: "array[float]" = field(default_factory=numbers)
    seconds: "array[float]" = field(default_factory=numbers)
    nbytes: "array[float]" = field(default_factory=numbers)
    room: int = MORE

    def fork(self) -> "Curve":
        """The same, to go on from."""
        return Curve(self.times[:], self.seconds[:], self.nbytes[:], self.room)

    def add(self, begin: float, end: float, seconds: float, nbytes: float) -> None:
        """So much was done between two moments."""
        end = max(end, begin + LEAST)
        times = self.times
        if not times or begin > times[-1]:
            self._append(begin, 0.0, 0.0)
        if begin == times[-1]:
            self._append(end, seconds, nbytes)
        else:
            self._add_late(begin, end, seconds, nbytes)
        if len(times) > self.room:
            self._thin()

    def at(self, moment: float) -> tuple[float, float]:
        """Seconds and bytes up to a moment."""
        times = self.times
        behind = bisect_right(times, moment)
        if not behind:
            return 0.0, 0.0
        if behind == len(times):
            return self.seconds[-1], self.nbytes[-1]
        part = (moment - times[behind - 1]) / (times[behind] - times[behind - 1])
        seconds, nbytes = self.seconds[behind - 1], self.nbytes[behind - 1]
        return (
            seconds + part * (self.seconds[behind] - seconds),
            nbytes + part * (self.nbytes[behind] - nbytes),
        )

    def between(self, begin: float, end: float) -> tuple[float, float]:
        """Seconds and bytes between two moments."""
        (before, moved_before), (until, moved) = self.at(begin), self.at(end)
        return max(0.0, until - before), max(0.0, moved - moved_before)

    def _append(self, moment: float, seconds: float, nbytes: float) -> None:
        self.seconds.append((self.seconds[-1] if self.times else 0.0) + seconds)
        self.nbytes.append((self.nbytes[-1] if self.times else 0.0) + nbytes)
        self.times.append(moment)

    def _add_late(self, begin: float, end: float, seconds: float, nbytes: float) -> None:
        """Others have been told before that were later."""
        if end > self.times[-1]:
            self._append(end, 0.0, 0.0)
        self._point(end)
        first = self._point(begin)
        for index in range(first + 1, len(self.times)):
            part = min(1.0, (self.times[index] - begin) / (end - begin))
            self.seconds[index] += part * seconds
            self.nbytes[index] += part * nbytes

    def _point(self, moment: float) -> int:
        """The index of the point at a moment, which is made if there is none."""
        behind = bisect_right(self.times, moment)
        if behind and self.times[behind - 1] == moment:
            return behind - 1
        seconds, nbytes = self.at(moment)
        self.times.insert(behind, moment)
        self.seconds.insert(behind, seconds)
        self.nbytes.insert(behind, nbytes)
        return behind

    def _thin(self) -> None:
        times = self.times
        now = last = times[-1]
        kept = [len(times) - 1]
        for index in range(len(times) - 2, 0, -1):
            if (last - times[index]) * GRAIN >= now - times[index]:
                kept.append(index)
                last = times[index]
        kept.append(0)
        kept.reverse()
        self.times = array("d", [times[index] for index in kept])
        self.seconds = array("d", [self.seconds[index] for index in kept])
        self.nbytes = array("d", [self.nbytes[index] for index in kept])
        self.room = len(kept) + MORE
