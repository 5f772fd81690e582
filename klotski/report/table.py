"""The rows as a table on standard output: what varied against what it did."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from klotski.report.rows import Row, Value
from klotski.units import format_size

__all__ = ["print_table"]

WIDTH = 1000  # characters, more than any table has: a terminal may wrap a line, but nothing is cut off

COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "plan.n_batches": ("n", "{:.0f}".format),
    "plan.batch_size": ("batch", "{:.0f}".format),
    "output_tokens_per_second": ("tokens/s", "{:.1f}".format),
    "prefill_seconds": ("prefill", "{:.1f} s".format),
    "decode_seconds": ("decode", "{:.1f} s".format),
    "bound.resource": ("bound", str),
    "bound.efficiency": ("of bound", "{:.0%}".format),
    "bubble_fraction": ("waited", "{:.0%}".format),
    "bytes_moved.disk": ("read", format_size),
    "peak_memory.device": ("memory", format_size),
    "peak_memory.host": ("below", format_size),
    "plan.next_resource": ("would bring most", str),
    "prefetch.hit_rate": ("hits", "{:.0%}".format),
    "prefetch.among_hottest": ("truly hot", "{:.0%}".format),
}
"""By figure: its heading, and how it is written. The files have all figures."""


def print_table(rows: Sequence[Row]) -> None:
    """A line for each run, and a sentence for each that has something to say beside its figures."""
    shown = [path for path in COLUMNS if any(row.is_ok and row.figures[path] is not None for row in rows)]
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("run")
    for key in rows[0].settings:
        table.add_column(key.removeprefix("pipeline."))
    for path in shown:
        table.add_column(COLUMNS[path][0], justify="right")
    table.add_column("status")
    for row in rows:
        settings = [write(value) for value in row.settings.values()]
        table.add_row(row.name, *settings, *(cell(row, path) for path in shown), state(row))
    console = Console(width=WIDTH, soft_wrap=True, highlight=False, markup=False, emoji=False)
    console.print(table)
    for row in rows:
        if row.error:
            console.print(f"{row.name}: {row.error}")


def cell(row: Row, path: str) -> str:
    """A figure as it is written; nothing for a run that did not reach its end."""
    value = row.figures[path]
    return COLUMNS[path][1](value) if row.is_ok and value is not None else ""


def state(row: Row) -> str:
    """How a run ended; one that was not carried out says so."""
    return "predicted" if row.is_ok and row.figures["mode"] == "predicted" else row.run.status


def write(value: Value) -> str:
    """A setting as it is written."""
    return "" if value is None else str(value)
