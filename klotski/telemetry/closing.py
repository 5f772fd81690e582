"""What is said at the end of a run."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from klotski.units import format_size

__all__ = ["print_summary"]

WIDTH = 1000  # characters, more than any line has: a terminal may wrap a path, but it is one line to copy


def print_summary(metrics: dict[str, Any], num_errors: int, folder: Path) -> None:
    """A short table on standard output, and where the files are."""
    bound = metrics["bound"]
    moved = ", ".join(f"{format_size(count)} by {lane}" for lane, count in metrics["bytes_moved"].items())
    moved = moved or "nothing"
    predicted = {"predicted": f"nothing was run: {metrics['reason']}"} if metrics["mode"] == "predicted" else {}
    rows = predicted | {
        "requests": f"{metrics['num_requests']} done" + (f", {num_errors} refused" if num_errors else ""),
        "output": f"{metrics['output_tokens']} tokens in {metrics['elapsed_time']:.1f} s, "
        f"{metrics['output_tokens_per_second']:.1f} tokens/s",
        "moved": f"{moved} in {metrics['num_sweeps']} sweeps",
        "bound": f"{bound['resource']}, {bound['efficiency']:.0%} of the time; "
        f"compute waited {metrics['bubble_fraction']:.0%}",
        "files": str(folder),
    }
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(name, value)
    console = Console(width=WIDTH, soft_wrap=True, highlight=False, markup=False, emoji=False)
    console.print(table)
