"""Bars and lines, with whiskers from the lowest to the highest of repeated runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from klotski.report.rows import Row
from klotski.report.series import Point, Series, gather
from klotski.report.style import COLOURS, HATCHES, MARKERS, panels

__all__ = ["draw_bars", "draw_lines"]

MOST_SERIES = len(COLOURS)  # more could not be told apart
MOST_PANELS = 4
MOST_NUMBERED = 12  # bars that have their value written above them
WHISKERS: dict[str, Any] = {"capsize": 3, "elinewidth": 0.8}


def draw_bars(
    rows: Sequence[Row], key: str, y: Callable[[Row], float | None], title: str, ylabel: str, *, share: bool = False
) -> Figure | None:
    """Bars of `y` by a setting, side by side for each combination of the others; None if there are not two of them.

    `share`: values are fractions of one.
    """
    places = {value: index for index, value in enumerate(dict.fromkeys(row.settings[key] for row in rows))}
    series = gather(rows, key, lambda row: places[row.settings[key]], y)
    bars = sum(map(len, series.values()))
    if bars < 2 or len(series) > MOST_SERIES:
        return None
    drawn, (axes,) = panels(rows, [title])
    for index, (name, points) in enumerate(series.items()):
        bar = draw_bar_series(axes, points, index, len(series), name)
        if bars <= MOST_NUMBERED:
            axes.bar_label(bar, [f"{point.middle:{'.0%' if share else '.3g'}}" for point in points], padding=2)
    for place in set(places.values()) - {point.x for points in series.values() for point in points}:
        axes.annotate("no figures", (place, 0), (0, 4), textcoords="offset points", rotation=90, ha="center")
    axes.set_xticks(list(places.values()), [str(value).replace("_", "\n") for value in places])
    finish(drawn, [axes], ylabel, share=share)
    return drawn


def draw_bar_series(axes: Axes, points: Sequence[Point], index: int, count: int, name: str) -> BarContainer:
    """The bars of one colour among `count` colours."""
    width = 0.8 / count
    return axes.bar(
        [point.x + (index - (count - 1) / 2) * width for point in points],
        [point.middle for point in points],
        width * 0.94,
        yerr=whiskers(points),
        error_kw=WHISKERS,
        color=COLOURS[index],
        hatch=HATCHES[index],
        edgecolor="white",
        linewidth=0,
        label=name,
    )


def draw_lines(
    rows: Sequence[Row],
    by_title: Mapping[str, Series],
    xlabel: str,
    ylabel: str,
    *,
    share: bool = False,
    labelled: bool = False,
) -> Figure | None:
    """A panel of lines for each title; None if no line has two points, or there are more than can be told apart.

    `share`: values are fractions of one. `labelled`: each point has its label beside it,
    on an axis from zero; without, the axis counts in whole numbers.
    """
    names = list(dict.fromkeys(name for series in by_title.values() for name in series))
    longest = max((len(points) for series in by_title.values() for points in series.values()), default=0)
    if longest < 2 or len(names) > MOST_SERIES or len(by_title) > MOST_PANELS:
        return None
    drawn, all_axes = panels(rows, list(by_title))
    for axes, series in zip(all_axes, by_title.values(), strict=True):
        for name, points in series.items():
            draw_line(axes, points, names.index(name), name, labelled)
        axes.set_xlabel(xlabel)
        if labelled:
            axes.set_xlim(left=0)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    finish(drawn, all_axes, ylabel, share=share)
    return drawn


def draw_line(axes: Axes, points: Sequence[Point], index: int, name: str, labelled: bool) -> None:
    """One line in its colour, through the medians."""
    across, up = [point.x for point in points], [point.middle for point in points]
    axes.errorbar(across, up, whiskers(points), label=name, color=COLOURS[index], marker=MARKERS[index], **WHISKERS)
    for point in points if labelled else ():
        axes.annotate(point.label, (point.x, point.middle), (4, 4), textcoords="offset points", fontsize=7)


def whiskers(points: Sequence[Point]) -> list[tuple[float, ...]] | None:
    """How far each point reaches down and up; None where no run was repeated."""
    if all(len(point.values) == 1 for point in points):
        return None
    return list(zip(*(point.reach for point in points), strict=True))


def finish(drawn: Figure, all_axes: Sequence[Axes], ylabel: str, *, share: bool) -> None:
    """The vertical axis from zero, and a legend beside the panels, where it covers nothing."""
    all_axes[0].set_ylabel(ylabel)
    all_axes[0].margins(y=0.1)
    all_axes[0].set_ylim(0, 1.05 if share else None)
    if share:
        all_axes[0].yaxis.set_major_formatter(PercentFormatter(1))
    entries = {name: each for axes in all_axes for each, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    if len(entries) > 1:
        drawn.legend(list(entries.values()), list(entries), loc="outside right upper")
