"""The last moments as lanes over time, and what each did at a moment that is pointed at."""

from rich.console import Group, RenderableType
from rich.text import Text

from monitor.draw import LEGEND, ROUGH_LEGEND
from monitor.lane import Lane
from monitor.panels.view import LABEL, View, rows_over_time
from monitor.state import State
from monitor.units import brief, when

__all__ = ["find_wait", "time_line"]


def time_line(view: View) -> RenderableType:
    """The panel."""
    begin, end = view.span
    known = view.state.bubbles.between(begin, end)
    waits = sorted(known, key=lambda span: -span.seconds)[: max(3, view.height - 8 - 2 * len(view.lanes))]
    longest = [Text(f"{1e3 * span.seconds:8.1f} ms at {when(span.begin)} for {span.name}") for span in waits]
    if longest:
        head = "the longest waits of compute (n, p: to the next, the one before):"
    else:
        head = "no wait of compute is told one by one" if view.cause.waits else "compute waited for nothing"
    lead = Text(f"{view.window:.3g} seconds   {LEGEND}{ROUGH_LEGEND * bool(view.state.gaps)}", "dim")
    moment = end if view.pointer is None else view.pointer
    now = [Text(f"{name:{LABEL}}{doing(view.state, view.state.lanes[name], moment)}") for name in view.lanes]
    return Group(lead, *rows_over_time(view), pointed_at(view), *now, Text(), Text(head), *longest)


def pointed_at(view: View) -> Text:
    """Where the cursor is, or how to get one."""
    begin, end = view.span
    if view.pointer is None:
        return Text(f"at {when(end)}, the right edge (j, k, or a click: elsewhere):", "dim")
    column = min(int((view.pointer - begin) / (end - begin) * view.columns), view.columns - 1)
    said = f" at {view.pointer:.3f} s: "
    if column + len(said) < view.columns:
        return Text(" " * (LABEL + column) + "▲" + said, "bold")
    return Text((said + "▲").rjust(LABEL + column + 1), "bold")


def doing(state: State, lane: Lane, moment: float) -> str:
    """What a lane did at a moment, or did last before it."""
    span = lane.at(moment)
    if any(begin <= moment <= end for begin, end in state.gaps) and (span is None or span.end < moment):
        return "something that is not written in detail"
    if span is None:
        return (
            "something that is not kept here: ← leads there" if len(lane.spans) == lane.spans.maxlen else "nothing yet"
        )
    took = f"{span.name} ({brief(span.seconds)})"
    return took if span.end >= moment else f"nothing for {brief(moment - span.end)}; before, {took}"


def find_wait(state: State, moment: float, step: int, least: float) -> float | None:
    """The middle of the next wait (step 1) or of the one before (-1), of those that are not too short to be seen."""
    middles = ((span.begin + span.end) / 2 for span in state.bubbles.spans if span.seconds >= least)
    if step > 0:
        return min((middle for middle in middles if middle > moment), default=None)
    return max((middle for middle in middles if middle < moment), default=None)
