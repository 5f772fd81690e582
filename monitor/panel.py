"""What a tab shows."""

from textual.containers import VerticalScroll
from textual.events import Click
from textual.message import Message
from textual.widgets import Static

__all__ = ["PADDING", "Panel"]

PADDING = 1  # columns beside a panel


class Panel(Static):
    """A panel, as large as what is drawn on it; it tells where it is clicked."""

    class Pointed(Message):
        """A column of it was clicked."""

        def __init__(self, column: int) -> None:
            super().__init__()
            self.column = column

    @property
    def room(self) -> VerticalScroll:
        """What it is scrolled in."""
        assert isinstance(self.parent, VerticalScroll)
        return self.parent

    def on_click(self, event: Click) -> None:
        """Tell where."""
        self.post_message(self.Pointed(event.x - PADDING))
