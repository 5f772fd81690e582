"""The terminal app: tabs of panels over one run, and the keys."""

import os
import select
import sys
from bisect import bisect_left
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import ClassVar, NamedTuple

from rich.console import Console
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.geometry import Size
from textual.widgets import Footer, Header, OptionList, Static, TabbedContent, TabPane
from textual.widgets.option_list import Option

from monitor.hardware import Gpu, look_at_gpus
from monitor.panels import PANELS, View
from monitor.player import Player
from monitor.source import Run, find_runs
from monitor.sweep import Job, Sweep, find_sweep

__all__ = ["Monitor"]

PERIOD = 0.25  # seconds from one picture to the next
SLOW = 8  # pictures from one look at what changes slowly to the next
ZOOM = 1.5
SPEEDS = (0.25, 0.5, 1.0, 2.0, 4.0, 16.0, 64.0)
JUMP = 0.02  # of the run, or a second
BY_TAB = {name.lower(): draw for name, draw in PANELS.items()}


class Frame(NamedTuple):
    """What a picture follows from, but for what is looked at now and then."""

    tab: str
    size: Size
    player: Player
    is_live: bool
    moment: float
    window: float | None


class Monitor(App[None]):
    """Shows a run. `folder`: where to look for others."""

    TITLE = "klotski-monitor"
    CSS = "Static.panel { padding: 0 1; } OptionList { height: 1fr; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        *(Binding(str(number), f"panel('{name}')", name, show=False) for number, name in enumerate(PANELS, start=1)),
        Binding("right_square_bracket", "next(1)", "Next panel", show=False),
        Binding("left_square_bracket", "next(-1)", "Previous panel", show=False),
        Binding("space", "pause", "Pause", priority=True),
        Binding("left", "jump(-1)", "Back", priority=True),
        Binding("right", "jump(1)", "On", priority=True),
        Binding("home", "seek(0)", "Begin", show=False),
        Binding("end,l", "live", "Live"),
        Binding("minus", "zoom(1)", "Out"),
        Binding("plus,equals_sign", "zoom(-1)", "In"),
        Binding("less_than_sign,comma", "speed(-1)", "Slower", show=False),
        Binding("greater_than_sign,full_stop", "speed(1)", "Faster", show=False),
        Binding("r", "runs", "Runs"),
        Binding("s", "picture", "Picture"),
        Binding("question_mark", "show_help_panel", "Help"),
    ]

    def __init__(self, run: Run | None, folder: Path, pictures: Path | None = None) -> None:
        super().__init__(ansi_color=True)
        self._folder = folder
        self._pictures = pictures or Path()
        self._run = run
        self._player: Player | None = None
        self._gpus: list[Gpu] = []
        self._sweep: Sweep | None = None
        self._jobs: list[Job] = []
        self._ticks = 0
        self._frame: Frame | None = None  # the last one that was drawn
        self._window: float | None = None  # seconds; until somebody zooms, the last sweeps

    def compose(self) -> ComposeResult:
        """The header, the tabs, and the keys."""
        yield Header(show_clock=False)
        with TabbedContent(id="tabs"):
            for name in PANELS:
                with TabPane(name, id=name.lower()), VerticalScroll(can_focus=False):
                    yield Static(id=f"panel-{name.lower()}", classes="panel")
            with TabPane("Runs", id="runs"):
                yield OptionList(id="list")
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Begin to look, in the terminal's own colours."""
        tone = "light" if is_light(os.environ.get("COLORFGBG", "")) else "dark"
        self.theme = f"ansi-{tone}"
        self.list_runs()
        if self._run is None:
            self.action_runs()
        else:
            self.show_run(self._run)
        if not self.is_headless:
            self.call_after_refresh(step_back)
        self.set_interval(PERIOD, self.tick)
        self.tick()

    def show_run(self, run: Run) -> None:
        """Show a run from now on."""
        self._player = Player(run)
        self.sub_title = self.name_of(run)
        self._sweep = find_sweep(run.folder)
        self._has_run = False
        self._ticks = 0

    def tick(self) -> None:
        """Read what has come, and draw the panel that is seen."""
        if not self.is_headless and has_hung_up():
            self.exit()
        player = self._player
        if player is None:
            self.sub_title = f"pick a run of {self._folder}" if self._runs else f"no run under {self._folder} yet"
            if self._ticks % SLOW == 0:
                self.list_runs()
            self._ticks += 1
            return
        player.advance(PERIOD)
        is_due = self._ticks % SLOW == 0
        if is_due:
            self._status, self._plan, self._metrics = player.run.status(), player.run.plan(), player.run.metrics()
            self._config, self._gpus = player.run.config(), look_at_gpus()
            self._jobs = self._sweep.jobs() if self._sweep else []
            self.follow_sweep()
        self._ticks += 1
        for tabs in self.query("#tabs").results(TabbedContent):  # none are left while the app is closing
            for panel in self.query(f"#panel-{tabs.active}").results(Static):
                frame = Frame(tabs.active, self.size, player, player.is_live, player.state.now, self._window)
                if frame != self._frame or is_due:
                    # What lies where takes as long to find as to draw, and seldom changes.
                    is_new = frame[:2] != self._frame[:2] if self._frame else True
                    panel.update(BY_TAB[tabs.active](self.view()), layout=is_new or is_due)
                    self._frame = frame

    def follow_sweep(self) -> None:
        """When a job has ended that was watched as it ran, go on with the one of its sweep that runs now."""
        assert self._player is not None
        if self._status.is_running:
            self._has_run = True
        elif self._has_run and self._player.is_live:
            for job in self._jobs:
                if job.status.is_running:
                    self.show_run(job.run)

    def view(self) -> View:
        """What is to be drawn now."""
        assert self._player is not None
        return View(
            self._player,
            self._status,
            self._plan,
            self._metrics,
            self._config,
            self._sweep,
            self._jobs,
            self._gpus,
            max(40, self.size.width - 4),
            max(10, self.size.height - 6),
            self._window or self.usual_window(),
        )

    def usual_window(self) -> float:
        """Seconds of the last two sweeps, or of what there is."""
        assert self._player is not None
        begin, end = self._player.state.last_sweep
        return max(0.01, 2 * (end - begin)) if self._player.state.sweeps else max(1.0, end)

    def list_runs(self) -> None:
        """All runs that can be shown."""
        options = self.query_one("#list", OptionList)
        options.clear_options()
        self._runs = find_runs(self._folder)
        for index, run in enumerate(self._runs[:200]):
            status = run.status()
            began = datetime.fromtimestamp(run.start).strftime("%Y-%m-%d %H:%M:%S")
            options.add_option(Option(f"{status.word:12}{began}  {self.name_of(run)}", id=str(index)))

    def name_of(self, run: Run) -> str:
        """Its folder, as short as it is understood where runs are looked for."""
        inside = run.folder.relative_to(self._folder) if run.folder.is_relative_to(self._folder) else run.folder
        return str(inside) if inside.parts else run.folder.name

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Show the run that was picked."""
        self.show_run(self._runs[int(event.option_id or 0)])
        self.tick()
        self.action_panel("Overview")

    def action_panel(self, name: str) -> None:
        """Show a panel."""
        self.query_one("#tabs", TabbedContent).active = name.lower()
        self.call_after_refresh(self.tick)

    def action_next(self, step: int) -> None:
        """Show the next panel, or the one before."""
        names = [*PANELS]
        active = self.query_one("#tabs", TabbedContent).active
        at = next((index for index, name in enumerate(names) if name.lower() == active), 0)
        self.action_panel(names[(at + step) % len(names)])

    def action_runs(self) -> None:
        """Pick another run."""
        self.list_runs()
        self.action_panel("Runs")
        options = self.query_one("#list", OptionList)
        options.highlighted = 0 if options.option_count else None
        options.focus()

    def action_pause(self) -> None:
        """Hold the moment that is shown, or go on."""
        player = self._player
        if player is None:
            return
        if player.is_live:
            player.is_live, player.is_paused = False, True
            player.state = player.state.fork()
        else:
            player.is_paused = not player.is_paused

    def action_jump(self, step: int) -> None:
        """Go back or forward in the run."""
        if self._player is not None:
            self._player.is_paused = True
            self._player.seek(self._player.shown + step * max(1.0, JUMP * self._player.end))

    def action_seek(self, moment: float) -> None:
        """Go to a moment."""
        if self._player is not None:
            self._player.is_paused = False
            self._player.seek(moment)

    def action_live(self) -> None:
        """Go to the newest there is."""
        if self._player is not None:
            self._player.is_paused = False
            self._player.seek(self._player.end)

    def action_zoom(self, step: int) -> None:
        """Look at more, or less, of the past."""
        if self._player is not None:
            self._window = min(86400.0, max(0.001, (self._window or self.usual_window()) * ZOOM**step))

    def action_speed(self, step: int) -> None:
        """Replay faster or slower."""
        if self._player is not None:
            at = bisect_left(SPEEDS, self._player.speed)
            self._player.speed = SPEEDS[min(len(SPEEDS) - 1, max(0, at + step))]
            self.notify(f"replay at {self._player.speed:g} times the speed")

    def action_picture(self) -> None:
        """Keep what is seen, as SVG and as text, for a report."""
        name = self._pictures / f"klotski-monitor-{datetime.now():%H%M%S}"
        try:
            name.with_suffix(".svg").write_text(self.export_screenshot(title="klotski-monitor"))
            if self._player is not None:
                with name.with_suffix(".txt").open("w") as file:
                    console = Console(file=file, width=self.size.width, no_color=True)
                    for title, draw in PANELS.items():
                        console.rule(title)
                        console.print(draw(self.view()))
        except OSError as error:
            self.notify(f"{name}.svg could not be written: {error.strerror}", severity="error")
        else:
            self.notify(f"written: {name}.svg and .txt")


def step_back() -> None:
    """From now on the run's threads come first, where both want a core."""
    with suppress(OSError):
        os.nice(19)


def is_light(said: str) -> bool:
    """Whether a terminal's background is light, by what many say of it: `foreground;background`, of 16 colours."""
    return said.rpartition(";")[2] in ("7", "15")


def has_hung_up() -> bool:
    """Whether the terminal is gone, which nobody might ever say otherwise."""
    terminal = select.poll()
    terminal.register(sys.__stdin__.fileno() if sys.__stdin__ else 0, 0)
    return bool(terminal.poll(0))
