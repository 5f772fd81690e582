"""The panels: each a picture of the state, as large as there is room."""

from collections.abc import Callable
from math import floor

from rich.console import RenderableType
from rich.text import Text

from monitor.panels.batches import batches
from monitor.panels.experts import experts
from monitor.panels.lanes import lanes
from monitor.panels.log import log
from monitor.panels.overview import overview
from monitor.panels.resources import resources
from monitor.panels.sweep import sweep
from monitor.panels.timeline import time_line
from monitor.panels.view import View
from monitor.player import Player

__all__ = ["PANELS", "View", "draw", "follows"]

PANELS: dict[str, Callable[[View], RenderableType]] = {
    "Overview": overview,
    "Lanes": lanes,
    "Batches": batches,
    "Timeline": time_line,
    "Experts": experts,
    "Resources": resources,
    "Sweep": sweep,
    "Log": log,
}
"""By the name on their tab, in order."""


def follows(name: str, player: Player) -> float:
    """What a panel is drawn anew for when it changes, beside its room, the keys, and what is looked at now and then."""
    if name in ("Log", "Sweep"):
        return 0.0
    if name == "Experts" and player.is_live:
        return floor(player.state.now)  # sums, which no second changes much, in the most characters of all panels
    return player.state.now


def draw(name: str, view: View) -> RenderableType:
    """A panel; whatever it stumbles over, the others and the keys go on."""
    try:
        return PANELS[name](view)
    except Exception as error:  # files of others can be odd in ways that nobody has thought of
        return Text(f"This panel could not be drawn: {type(error).__name__}: {error}", "red")
