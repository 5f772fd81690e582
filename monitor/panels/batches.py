"""Each batch and the stage that it is in."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from monitor.panels.view import View
from monitor.units import plural

__all__ = ["batches", "stages_of"]

STAGES = ("waiting", "attention", "router", "experts", "done")


def batches(view: View) -> RenderableType:
    """The panel."""
    stages = stages_of(view)
    if not stages:
        return Text(nobody(view))
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("batch")
    table.add_column("layer", justify="right")
    for stage in STAGES:
        table.add_column(stage)
    for batch, (shown, layer) in stages.items():
        table.add_row(str(batch), str(layer), *("●" if each == shown else "·" for each in STAGES))
    phase, at = view.state.phase
    return Group(Text(f"the group: {phase}, layer {at}"), table)


def stages_of(view: View) -> dict[int, tuple[str, int]]:
    """Of each batch, where it is."""
    state = view.state
    if has_left(view) or (not state.is_in_detail and not state.stages):
        return {}
    phase, at = state.phase
    attending = state.attending
    found = {}
    for batch, (stage, layer, _) in sorted(state.stages.items()):
        if attending and batch == attending[0]:
            found[batch] = "attention", attending[1]
        else:
            # Those whose routers have spoken are in the group's expert phase, if that has come to their layer.
            is_computed = stage == "router" and phase == "experts" and at == layer
            found[batch] = ("experts" if is_computed else stage), layer
    return found


def has_left(view: View) -> bool:
    """Whether all batches have; of a run that failed, or died, it is shown where they were."""
    return view.is_over and view.status.word == "ok"


def nobody(view: View) -> str:
    """Why there are no batches to show."""
    state = view.state
    if has_left(view):
        return "The run has ended: all batches have left. Go back in time (←) to see them."
    if state.num_sweeps and not state.is_in_detail:
        taken = plural(state.sweeps[-1].batches, "batch")
        return f"{taken} took part in the last sweep. Where each is, is not written for sweeps like this one."
    return "No batch has done anything yet."
