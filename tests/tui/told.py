"""What a run tells, made up; and a view of it without an app."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from monitor.events import Event, read_line
from monitor.panels import View, draw
from monitor.player import Player
from monitor.source import Run
from monitor.state import State

__all__ = ["event", "player_of", "said", "span", "state_of", "sweep", "view_of", "wait"]


def event(tag: str, /, **fields: Any) -> Event:
    """An event as its line would be read."""
    read = read_line(json.dumps({"event": tag} | fields).encode())
    assert read is not None
    return read


def span(lane: str, kind: str, begin: float, end: float, layer: int = 0, **more: Any) -> Event:
    return event("span", lane=lane, kind=kind, layer=layer, begin=begin, end=end, **more)


def wait(kind: str, begin: float, end: float, layer: int = 0, **more: Any) -> Event:
    return event("bubble", lane="compute", kind=kind, layer=layer, begin=begin, end=end, **more)


def sweep(begin: float, end: float, **more: Any) -> Event:
    return event("sweep", begin=begin, end=end, **({"batches": 1, "output_tokens": 1} | more))


def state_of(*events: Event) -> State:
    state = State()
    for each in events:
        state.apply(each)
    return state


def player_of(run: Path) -> Player:
    """All that there is has been read."""
    player = Player(Run(run))
    while player.is_loading:
        player.advance(0.0)
    return player


def view_of(player: Player, size: tuple[int, int] = (78, 20), window: float | None = None, **more: Any) -> View:
    run, (width, height) = player.run, size
    begin, end = player.state.last_sweep
    known: dict[str, Any] = {
        "status": run.status(),
        "plan": run.plan(),
        "metrics": run.metrics(),
        "config": run.config(),
        "is_predicted": run.is_predicted,
        "log": run.log(),
        "sweep": None,
        "jobs": [],
        "gpus": [],
        "cores": [0.5, 0.25],
    }
    window = window or max(0.01, 2 * (end - begin))
    return View(**known | {"player": player, "width": width, "height": height, "window": window} | more)


def said(name: str, view: View) -> str:
    """What a panel says, in lines that are not broken."""
    out = StringIO()
    Console(file=out, width=400, no_color=True).print(draw(name, view))
    return out.getvalue()
