"""Rows as points to draw: runs of the same settings are one point."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from statistics import median

from klotski.errors import ConfigError
from klotski.report.rows import Row
from klotski.report.runs import Setting
from klotski.units import parse_size

__all__ = ["BATCH_SIZE", "N_BATCHES", "PREDICTOR", "Point", "Series", "describe", "figure", "gather", "gather_layers"]

N_BATCHES, BATCH_SIZE, PREDICTOR = "pipeline.n_batches", "pipeline.batch_size", "pipeline.predictor"
SEED = "workload.seed"
"""Runs that differ in nothing else are repetitions."""

WORDING = {N_BATCHES: "n = {}", BATCH_SIZE: "batches of {}", PREDICTOR: "{}"}
"""How a setting is written beside others; a group's option goes by its name alone, and others as key=value."""


@dataclass(frozen=True)
class Point:
    """The repetitions of one setting; `label` says which it is."""

    x: float
    values: tuple[float, ...]
    label: str = ""

    @property
    def middle(self) -> float:
        """The median."""
        return median(self.values)

    @property
    def reach(self) -> tuple[float, float]:
        """How far the lowest and the highest lie from the median."""
        return self.middle - min(self.values), max(self.values) - self.middle


Series = dict[str, list[Point]]
"""Lines, or bars of one colour, by their name in the legend."""


def figure(path: str, row: Row) -> float | None:
    """A figure that can be drawn: a number, of a run that reached its end."""
    value = row.figures[path]
    return float(value) if row.is_ok and isinstance(value, int | float) else None


def gather(rows: Iterable[Row], key: str, x: Callable[[Row], float | None], y: Callable[[Row], float | None]) -> Series:
    """A point for each value of a setting: one series for each combination of all other settings.

    Runs of the same settings become one point, at the median of their `x`; those without `x` or `y` are
    left out. Points lie in the order of the setting's values, which lines follow.
    """
    found: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        across, up = x(row), y(row)
        if across is not None and up is not None:
            found[describe(row, key)][str(row.settings[key])].append((across, up))
    return {
        name: [point_of(points[label], label) for label in sorted(points, key=by_value)]
        for name, points in found.items()
    }


def gather_layers(rows: Iterable[Row]) -> Series:
    """By layer, the share of the experts held to be hot that truly were; one series for each predictor."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for layer in row.run.metrics.get("prefetch", {}).get("layers", ()) if row.is_ok else ():
            if layer["named"]:
                found[str(row.run.config.get(PREDICTOR))][layer["layer"]].append(layer["among_hottest"])
    return {
        name: [Point(layer, tuple(shares)) for layer, shares in sorted(layers.items())]
        for name, layers in found.items()
    }


def point_of(pairs: Sequence[tuple[float, float]], label: str) -> Point:
    """One point for runs of the same settings."""
    return Point(median(x for x, _ in pairs), tuple(y for _, y in pairs), label)


def by_value(label: str) -> tuple[float, str]:
    """Numbers, sizes and rates by how much they are, and after them what is none."""
    try:
        size = parse_size(label, label.removesuffix("/s"), least=0)
    except ConfigError:
        size = None
    return inf if size is None else size, label


def describe(row: Row, leave_out: str | None = None) -> str:
    """What varied, but for one key, in a few words."""
    return ", ".join(write(key, value) for key, value in row.settings.items() if key not in (leave_out, SEED))


def write(key: str, value: Setting) -> str:
    """One setting in a few words."""
    wording = WORDING.get(key, "{}" if "." not in key else f"{key.partition('.')[2]}={{}}")
    return wording.format(value)
