"""How plots look; no state of matplotlib's is left changed.

Colours are those of Okabe and Ito, which every kind of colour vision tells apart; lines differ in their
markers, too, and bars in their hatching, for prints in black and white.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from klotski.errors import OutputError
from klotski.report.rows import Row
from klotski.report.series import describe

__all__ = ["COLOURS", "HATCHES", "MARKERS", "panels", "save", "styled"]

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo", "---", "+++")
FORMATS = ("png", "svg")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "hatch.linewidth": 0.6,
    "savefig.dpi": 200,
    "svg.hashsalt": "klotski",  # the same rows give the same file
}
HEIGHT, WIDTH, WIDTH_OF_ANOTHER = 3.4, 5.6, 3.6  # of panels, in inches


@contextmanager
def styled() -> Iterator[None]:
    """Inside, figures are made in this style; outside, matplotlib is as it was."""
    with matplotlib.rc_context(STYLE):
        yield


def panels(rows: Sequence[Row], titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A figure of panels that share their vertical axis, with a line that says what the runs share."""
    drawn = Figure(figsize=(WIDTH + WIDTH_OF_ANOTHER * (len(titles) - 1), HEIGHT), layout="constrained")
    axes = list(drawn.subplots(1, len(titles), sharey=True, squeeze=False)[0])
    for each, title in zip(axes, titles, strict=True):
        each.set_title(title)
    drawn.supxlabel(shared(rows), fontsize=7, color="#555555", x=0.01, horizontalalignment="left")
    return drawn, axes


def shared(rows: Sequence[Row]) -> str:
    """What all runs were made with, as far as it is one thing for all, and what else a reader has to know."""
    said = []
    for group in ("model", "workload", "pipeline", "placement"):
        options = {row.run.config.get(f"{group}.name") for row in rows}
        said += [f"{group}={option}" for option in options if len(options) == 1 and option is not None]
    said += ["predicted, not measured"] * any(row.figures["mode"] == "predicted" for row in rows)
    if len({describe(row) for row in rows}) < len(rows):
        said.append("medians of repeated runs, from the lowest to the highest")
    return ", ".join(said)


def save(drawn: Figure, folder: Path, name: str) -> list[Path]:
    """The figure in every format.

    Raises:
        OutputError: it cannot be written.
    """
    files = [folder / f"{name}.{each}" for each in FORMATS]
    try:
        for file in files:
            # A date would make two files of the same plot differ.
            drawn.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    except OSError as error:
        raise OutputError(f"{error.filename or folder} could not be written: {error.strerror}") from error
    return files
