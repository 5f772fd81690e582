"""The jobs of a sweep, and what came of them so far."""

from math import inf

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from monitor.panels.view import SIGNS, View
from monitor.sweep import Job, varied
from monitor.units import plural

__all__ = ["progress", "sweep"]

ROUNDING = 1 + 1e-9


def sweep(view: View) -> RenderableType:
    """The panel."""
    if view.sweep is None:
        return Text("This run is not part of a sweep: one command that runs jobs with several settings (-m).")
    keys = varied(view.jobs)
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("job", justify="right")
    for key in keys:
        table.add_column(Text(key), overflow="fold")
    for figure in ("tokens/s", "n", "batch", "bound", "of bound", "waited"):
        table.add_column(figure, justify="right")
    table.add_column("status")
    for job in view.jobs:
        table.add_row(*map(Text, cells(job, keys)))
    return Group(Text(progress(view)), table)


def cells(job: Job, keys: list[str]) -> list[str]:
    """A job's row."""
    metrics, plan, word = job.run.metrics(), job.run.plan(), job.status.word
    shown = "predicted" if metrics.text("mode") == "predicted" and word == "ok" else word
    return [
        job.run.folder.name,
        *(job.settings.get(key, "") for key in keys),
        figure(metrics.number("output_tokens_per_second"), ".1f"),
        figure(plan.number("n_batches"), ".0f"),
        figure(plan.number("batch_size"), ".0f"),
        metrics.text("bound", "resource"),
        figure(metrics.number("bound", "efficiency"), ".0%", most=1.0),
        figure(metrics.number("bubble_fraction"), ".0%"),
        f"{SIGNS.get(word, '?')} {shown}",
    ]


def progress(view: View) -> str:
    """How far a sweep is."""
    ended = [job for job in view.jobs if not job.status.is_running]
    failed = sum(job.status.word != "ok" for job in ended)
    total = view.sweep.total if view.sweep else None
    whole = f"{len(ended)} of {plural(total, 'job')} have ended" if total else f"{plural(len(ended), 'job')} ended"
    return whole + (f", {failed} of them not well" if failed else "")


def figure(value: float | None, form: str, most: float = inf) -> str:
    """A figure as it is written; nothing where there is none, or more than there can be."""
    return "" if value is None or value > most * ROUNDING else format(value, form)
