"""For each lane what waits, what it does now, how fast it is, and how busy."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from monitor.draw import bar, moments, rough_columns
from monitor.panels.view import View
from monitor.units import flops, plural, size

__all__ = ["lanes"]


def lanes(view: View) -> RenderableType:
    """The panel."""
    begin, end = view.span
    parts: list[RenderableType] = []
    gaps = rough_columns(view.state, begin, end, view.width - 4)
    for name in view.lanes:
        lane = view.state.lanes[name]
        head = Text(f"{name:8} ", "bold")
        head.append_text(bar(lane.busy(begin, end), max(10, view.width // 3)))
        parts += [head, Text("  " + "; ".join(facts(view, name)), "dim")]
        parts.append(Text("  ").append_text(moments(lane, begin, end, view.width - 4, "cyan", gaps)))
    if not parts:
        return Text("No lane has done anything yet.")
    wanted = view.state.wanted
    if wanted and not view.is_over:
        parts.append(Text("wait for a slot: " + ", ".join(f"{count} {why}" for why, count in wanted.items())))
    return Group(*parts)


def facts(view: View, name: str) -> Iterator[str]:
    """A lane in words."""
    lane = view.state.lanes[name]
    yield queue(view, name)
    if not view.state.is_in_detail:
        yield "what it does now is not written"
    elif lane.spans:
        yield f"last: {lane.spans[-1].name}"
    if name == "compute":
        yield from arithmetic(view)
    elif rate := lane.rate(*view.span):
        peak = view.peak(name)
        yield peak.of(rate, size) if peak else f"{size(rate)}/s"


def queue(view: View, name: str) -> str:
    """What waits for a lane."""
    waiting = view.state.lanes[name].waiting
    if name == "compute":
        return "has no queue"
    if view.is_over:
        return "waiting: nothing, the run has ended"
    if waiting is None:
        return "waiting: not told"
    return f"waiting: {plural(waiting[0], 'operation')}, {size(waiting[1])}"


def arithmetic(view: View) -> Iterator[str]:
    """How fast the last sweep computed, while it did."""
    if not view.state.works or not view.state.sweeps:
        return
    sweep = view.state.sweeps[-1]
    seconds = view.state.lanes["compute"].busy(sweep.begin, sweep.end) * (sweep.end - sweep.begin)
    if sweep.flops and seconds:
        peak, rate = view.peak("compute"), sweep.flops / seconds
        yield peak.of(rate, flops) if peak else f"{flops(rate)}/s"
