"""The end of the run's log."""

from rich.console import RenderableType
from rich.text import Text

from monitor.panels.view import View

__all__ = ["log"]

LAST = 200  # lines; whoever wants more has the file


def log(view: View) -> RenderableType:
    """The panel."""
    return Text("\n".join(view.log[-LAST:]) or "The log is empty.")
