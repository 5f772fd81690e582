"""Which experts of which layer were hot in one run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from klotski.report.rows import Row
from klotski.report.style import panels

__all__ = ["draw_hot_experts"]


def draw_hot_experts(rows: Sequence[Row]) -> Figure | None:
    """A heat map, layer by expert, of a single run's `experts.json`; None if there is none.

    Dots mark as many experts of a layer as a token chooses. Beside a layer's number stands the mean share
    of one sweep's hottest that are among the next sweep's, too.
    """
    found = read_experts(rows[0].run.folder / "experts.json") if len(rows) == 1 else {}
    layers = [layer for layer, counts in enumerate(found.get("tokens", ())) if sum(counts)]
    if not layers:
        return None
    shares = np.full((len(layers), max(len(found["tokens"][layer]) for layer in layers)), np.nan)
    drawn, (axes,) = panels(rows, ["What the tokens chose; dots: the hottest of each layer"])
    for place, layer in enumerate(layers):
        counts = np.array(found["tokens"][layer])
        shares[place, : len(counts)] = counts / counts.sum()
        hottest = np.argsort(-counts, kind="stable")[: found["top_k"]]
        axes.plot(hottest, [place] * len(hottest), "o", color="black", markeredgecolor="white", markersize=5)
    image = axes.imshow(shares, cmap="cividis", aspect="auto", vmin=0)
    drawn.colorbar(image, ax=axes, label="share of the layer's choices")
    axes.set_yticks(range(len(layers)), [name_of(layer, found["stability"][layer]) for layer in layers])
    axes.grid(visible=False)
    axes.set(xlabel="expert", ylabel="layer, and share that stays hot")
    return drawn


def read_experts(file: Path) -> dict[str, Any]:
    """The content of `experts.json`; empty where there is none, or not a whole one."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def name_of(layer: int, stability: float | None) -> str:
    """A layer's number and how stable its hottest experts are."""
    return str(layer) if stability is None else f"{layer}   {stability:.0%}"
