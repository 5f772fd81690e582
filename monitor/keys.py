"""The keys, in the order in which the footer has them, and what they do: actions of the app."""

from textual.binding import Binding, BindingType

from monitor.panels import PANELS

__all__ = ["KEYS"]

KEYS: list[BindingType] = [
    Binding("question_mark", "help", "Help", key_display="?"),
    Binding("right_square_bracket", "next(1)", "Panel", key_display="1-8 ]"),
    Binding("w", "story", "About"),
    Binding("space", "pause", "Pause", priority=True),
    Binding("left", "jump(-1)", "Back", priority=True),
    Binding("right", "jump(1)", "On", priority=True),
    Binding("r", "runs", "Runs"),
    Binding("q", "quit", "Quit"),
    Binding("s", "picture", "Picture"),
    Binding("minus", "zoom(1)", "Zoom out"),
    Binding("plus,equals_sign", "zoom(-1)", "Zoom in"),
    *(Binding(str(number), f"panel('{name}')", name, show=False) for number, name in enumerate(PANELS, start=1)),
    Binding("left_square_bracket", "next(-1)", "Previous panel", show=False),
    Binding("up", "scroll('up')", "Scroll up", show=False),
    Binding("down", "scroll('down')", "Scroll down", show=False),
    Binding("pageup", "scroll('page_up')", "A page up", show=False),
    Binding("pagedown", "scroll('page_down')", "A page down", show=False),
    Binding("shift+left", "jump(-10)", "Back by a window", show=False),
    Binding("shift+right", "jump(10)", "On by a window", show=False),
    Binding("home", "seek(0)", "Begin", show=False),
    Binding("end,l", "live", "Live", show=False),
    Binding("j", "cursor(-1)", "Cursor left", show=False),
    Binding("k", "cursor(1)", "Cursor right", show=False),
    Binding("n", "wait(1)", "Next wait of compute", show=False),
    Binding("p", "wait(-1)", "Wait before", show=False),
    Binding("less_than_sign,comma", "speed(-1)", "Replay slower", show=False),
    Binding("greater_than_sign,full_stop", "speed(1)", "Replay faster", show=False),
    Binding("escape", "leave", "Close help, no cursor", show=False),
]
