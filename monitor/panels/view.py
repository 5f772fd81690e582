"""What a panel draws: a run, the moment that is shown, and how large."""

from collections.abc import Callable
from typing import NamedTuple

from rich.text import Text

from monitor.cause import PEAKS, Cause, find_cause, measured
from monitor.draw import timeline
from monitor.facts import Facts
from monitor.machine import Gpu
from monitor.player import Player
from monitor.source import Status
from monitor.state import State
from monitor.sweep import Job, Sweep
from monitor.units import when

__all__ = ["LABEL", "SIGNS", "Peak", "View", "rows_over_time"]

ORDER = ("compute", "cores", "link", "kv_in", "kv_out", "disk")  # of lanes, from top to bottom
LABEL = 9  # columns for the names of lanes, left of what they did
SIGNS = {"running": "▶", "ok": "✓", "failed": "✗", "interrupted": "■", "dead": "✝", "silent": "?"}


class Peak(NamedTuple):
    """A rate that is held to be the most: `planned`, or `measured` by the run."""

    rate: float
    kind: str

    def of(self, reached: float, unit: Callable[[float], str]) -> str:
        """What was reached, and which share of the peak that is; or that it is more, so that the peak lies higher."""
        peak = f"{unit(self.rate)}/s ({self.kind})"
        share = f"{reached / self.rate:.0%} of" if reached <= self.rate else "more than the"
        return f"{unit(reached)}/s, {share} {peak}"


class View(NamedTuple):
    """See the module."""

    player: Player
    status: Status
    plan: Facts
    metrics: Facts
    config: Facts
    is_predicted: bool
    log: list[str]
    sweep: Sweep | None
    jobs: list[Job]
    gpus: list[Gpu]
    cores: list[float]
    """Of this machine, the share that each has worked lately."""
    width: int
    height: int
    window: float
    """Seconds that the timeline shows."""
    cursor: float | None = None
    """A moment that was pointed at."""

    @property
    def state(self) -> State:
        """How things stand."""
        return self.player.state

    @property
    def lanes(self) -> list[str]:
        """The lanes that the run has, compute first."""
        known = self.state.lanes
        return [name for name in ORDER if name in known] + sorted(set(known) - set(ORDER))

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, and its end is shown."""
        return self.player.is_live and not self.status.is_running

    @property
    def final(self) -> Facts:
        """What came of the run in the end, if that is what is shown."""
        return self.metrics if self.is_over else Facts()

    @property
    def span(self) -> tuple[float, float]:
        """The time that is looked at."""
        end = self.state.active if self.is_over else self.state.now
        return max(0.0, end - self.window), max(end, 1e-3)

    @property
    def pointer(self) -> float | None:
        """The cursor, while it is in sight."""
        begin, end = self.span
        return self.cursor if self.cursor is not None and begin <= self.cursor <= end else None

    @property
    def columns(self) -> int:
        """Of the timeline."""
        return max(20, self.width - LABEL)

    @property
    def cause(self) -> Cause:
        """Why compute waits in this time."""
        return find_cause(self.state, *self.span, self.config.group("pipeline"), self.plan)

    @property
    def rates(self) -> tuple[dict[str, float], str]:
        """The rates that shares may be shown of, and whether they are `planned` or were `measured` by the run itself.

        Of a plan those that were measured; of a prediction, which keeps to them, all.
        """
        if found := self.metrics.numbers("rates"):
            return found, "planned" if self.is_predicted else "measured"
        return self.plan.numbers("rates") if self.is_predicted else measured(self.plan), "planned"

    def peak(self, lane: str) -> Peak | None:
        """What a lane is held to reach at most: bytes a second, of `compute` operations."""
        name = "compute" if lane == "compute" else PEAKS.get(lane, lane)
        rates, kind = self.rates
        rate = rates.get(name)
        return Peak(rate, kind) if rate else None


def rows_over_time(view: View) -> list[Text]:
    """Compute's waits, the lanes, and a scale."""
    begin, end = view.span
    over_time = timeline(view.state, view.lanes, begin, end, view.columns)
    rows = [Text.assemble((f"{name:{LABEL}.{LABEL}}", "bold"), line) for name, line in over_time]
    first, last = when(begin), when(end)
    return [*rows, Text(" " * LABEL + first.ljust(view.columns - len(last)) + last, "dim")]
