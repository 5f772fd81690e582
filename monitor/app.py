"""The terminal app: tabs of panels over one run, and the keys."""

import os
from bisect import bisect_left
from datetime import datetime
from pathlib import Path
from typing import ClassVar, NamedTuple

import psutil
from rich.console import Console
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.geometry import Size
from textual.widgets import Footer, Header, HelpPanel, OptionList, TabbedContent, TabPane

from monitor.keys import KEYS
from monitor.machine import Gpu, Gpus
from monitor.panel import PADDING, Panel
from monitor.panels import PANELS, View, draw, follows
from monitor.panels.story import story
from monitor.panels.timeline import find_wait
from monitor.panels.view import LABEL
from monitor.picker import Picker
from monitor.player import Player
from monitor.source import Run, RunList
from monitor.terminal import has_hung_up, is_light, step_back
from monitor.watch import Watch

__all__ = ["Monitor"]

PERIOD = 0.25  # seconds from one picture to the next
SLOW = 8  # pictures from one look at what changes slowly to the next
ZOOM = 1.5
SPEEDS = (0.25, 0.5, 1.0, 2.0, 4.0, 16.0, 64.0)
STEP = 0.1  # of the visible window
AHEAD = 2  # windows that are looked through for a wait to come, and then as many times what was in vain
UNSEEN = 0.1  # of a column: shorter waits are not jumped to


class Frame(NamedTuple):
    """What a picture follows from, but for what is looked at now and then."""

    tab: str
    size: Size
    watch: Watch
    tells_story: bool
    is_live: bool
    moment: float
    window: float | None
    cursor: float | None


class Monitor(App[None]):
    """Shows a run. `folder`: where to look for others."""

    TITLE = "klotski-monitor"
    CSS = f"""
    Panel, #lead {{ padding: 0 {PADDING}; }}
    OptionList {{ height: 1fr; }}
    VerticalScroll {{ scrollbar-size-vertical: 1; scrollbar-gutter: stable; }}
    """
    BINDINGS: ClassVar[list[BindingType]] = KEYS

    def __init__(self, run: Run | None, folder: Path, pictures: Path | None = None) -> None:
        super().__init__(ansi_color=True)
        self._pictures = pictures or Path()
        self._runs = RunList(folder)
        self._picker = Picker(folder)
        self._run = run
        self._watch: Watch | None = None
        self._gpus = Gpus()
        self._gpus_seen: list[Gpu] = []
        self._cores: list[float] = []
        self._ticks = 0
        self._frame: Frame | None = None  # the last one that was drawn
        self._window: float | None = None  # seconds; until somebody zooms, the last sweeps
        self._cursor: float | None = None
        self._tells_story = False

    @property
    def player(self) -> Player | None:
        """The story of the run that is shown."""
        return self._watch.player if self._watch else None

    def compose(self) -> ComposeResult:
        """The header, the tabs, and the keys."""
        yield Header(show_clock=False)
        with TabbedContent(id="tabs"):
            for name in PANELS:
                with TabPane(name, id=name.lower()), VerticalScroll(can_focus=False, id=f"room-{name.lower()}"):
                    yield Panel(id=f"panel-{name.lower()}")
            with TabPane("Runs", id="runs"):
                yield self._picker
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Begin to look, in the terminal's own colours."""
        tone = "light" if is_light(os.environ.get("COLORFGBG", "")) else "dark"
        self.theme = f"ansi-{tone}"
        psutil.cpu_percent(percpu=True)  # it tells what was since the last time
        self._picker.show(self._runs.find())
        if self._run is None:
            self.action_runs()
        else:
            self.show_run(self._run)
        if not self.is_headless:
            self.call_after_refresh(step_back)
        self.set_interval(PERIOD, self.tick)
        self.draw_panel()  # before anything is read, so that the terminal is not empty for long

    def on_unmount(self) -> None:
        """Give back what was taken."""
        self._gpus.close()

    def show_run(self, run: Run) -> None:
        """Show a run from now on, from its newest moment."""
        self._watch = Watch(run)
        self._window = self._cursor = None
        self._ticks = 0

    def tick(self) -> None:
        """Read what has come, and draw the panel that is seen."""
        if not self.is_headless and has_hung_up():
            self.exit()
        is_due = self._ticks % SLOW == 0
        self._ticks += 1
        if is_due:
            self.look()
        if self._watch is not None:
            self._watch.player.advance(PERIOD)
        self.draw_panel(is_due=is_due)

    def look(self) -> None:
        """Look at what changes slowly."""
        self._cores = [part / 100 for part in psutil.cpu_percent(percpu=True)]
        if not any(worker.group == "gpus" for worker in self.workers):  # a driver that hangs is asked once
            self.run_worker(self.look_at_gpus, thread=True, group="gpus")
        if self._watch is None or self.tab == "runs":
            self._picker.show(self._runs.find())
        if self._watch is None:
            return
        self._watch.look()
        if self._watch.is_another:
            self.show_run(Run(self._watch.run.folder))
        elif job := self._watch.next_job:
            self.show_run(job)

    def look_at_gpus(self) -> None:
        """On a thread of its own: a driver may take its time."""
        self._gpus_seen = self._gpus.look()

    def draw_panel(self, *, is_due: bool = False) -> None:
        """Draw the panel that is seen, if there is something new."""
        watch, tab = self._watch, self.tab
        self.sub_title = f"{watch.words} · {self._picker.name_of(watch.run)}" if watch else "pick a run"
        for panel in self.query(f"#panel-{tab}").results(Panel):
            if watch is None:
                panel.update(story())
                continue
            frame = Frame(
                *(tab, panel.size, watch, self._tells_story, watch.player.is_live),
                *(follows(self.title_of(tab), watch.player), self._window, self._cursor),
            )
            if frame != self._frame or is_due:
                # What lies where takes as long to find as to draw, and seldom changes.
                is_new = frame[:4] != self._frame[:4] if self._frame else True
                was_at_end = tab == "log" and panel.room.is_vertical_scroll_end
                drawn = story() if self._tells_story else draw(self.title_of(tab), self.view())
                panel.update(drawn, layout=is_new or is_due)
                self._frame = frame
                if was_at_end:
                    self.call_after_refresh(panel.room.scroll_end, animate=False)

    @property
    def tab(self) -> str:
        """The tab that is seen; "" while the app is closing."""
        return next((tabs.active for tabs in self.query("#tabs").results(TabbedContent)), "")

    def title_of(self, tab: str) -> str:
        """The name on a tab."""
        return next(name for name in PANELS if name.lower() == tab)

    def view(self) -> View:
        """What is to be drawn now."""
        watch = self._watch
        assert watch is not None
        room = self.room(self.tab)
        return View(
            player=watch.player,
            status=watch.status,
            plan=watch.plan,
            metrics=watch.metrics,
            config=watch.config,
            is_predicted=watch.is_predicted,
            log=watch.log,
            sweep=watch.sweep,
            jobs=watch.jobs,
            gpus=self._gpus_seen,
            cores=self._cores,
            width=max(40, room.width),
            height=max(10, room.height),
            window=self._window or self.usual_window(),
            cursor=self._cursor,
        )

    def room(self, tab: str) -> Size:
        """Columns and lines for a panel: its own, which help beside it makes fewer."""
        for room in self.query(f"#room-{tab}").results(VerticalScroll):
            width = room.query_one(Panel).size.width
            if width and room.size.height:
                return Size(width, room.size.height)
        return Size(self.size.width - 2 * PADDING - 1, self.size.height - 4)

    def usual_window(self) -> float:
        """Seconds of the last two sweeps, or of what there is."""
        assert self.player is not None
        begin, end = self.player.state.last_sweep
        return max(0.01, 2 * (end - begin)) if self.player.state.sweeps else max(1.0, end)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Show the run that was picked."""
        self.show_run(self._picker.run_of(event.option_id))
        self.tick()
        self.action_panel("Overview")

    def on_tabbed_content_tab_activated(self, event: TabbedContent.TabActivated) -> None:
        """The list of runs takes the keys while it is seen."""
        if event.pane.id == "runs":
            self.query_one("#list", OptionList).focus()
        self.call_after_refresh(self.draw_panel)

    def on_panel_pointed(self, event: Panel.Pointed) -> None:
        """A moment of the timeline was clicked."""
        if self._watch is not None and self.tab == "timeline" and event.column >= LABEL:
            self._watch.player.hold()
            begin, end = self.view().span
            columns = self.view().columns
            self._cursor = begin + (min(event.column - LABEL, columns - 1) + 0.5) * (end - begin) / columns
            self.draw_panel()

    def action_panel(self, name: str) -> None:
        """Show a panel."""
        self._tells_story = self._tells_story and self._watch is None
        self.query_one("#tabs", TabbedContent).active = name.lower()
        self.call_after_refresh(self.draw_panel)

    def action_next(self, step: int) -> None:
        """Show the next panel, or the one before."""
        names = [*PANELS]
        at = next((index for index, name in enumerate(names) if name.lower() == self.tab), 0)
        self.action_panel(names[(at + step) % len(names)])

    def action_runs(self) -> None:
        """Pick another run."""
        self._picker.show(self._runs.find())
        self.action_panel("Runs")

    def action_help(self) -> None:
        """Show all keys, or no more."""
        if self.screen.query(HelpPanel):
            self.action_hide_help_panel()
        else:
            self.action_show_help_panel()

    def action_story(self) -> None:
        """Say what there is to see, or go back to it."""
        self._tells_story = not self._tells_story
        if self.tab == "runs":
            self._tells_story = True
            self.query_one("#tabs", TabbedContent).active = "overview"
        self.draw_panel(is_due=True)

    def action_leave(self) -> None:
        """Back to the run and nothing else."""
        if self.screen.query(HelpPanel):
            self.action_hide_help_panel()
        self._tells_story, self._cursor = False, None

    def action_scroll(self, where: str) -> None:
        """Go through a panel that is higher than the terminal."""
        for room in self.query(f"#room-{self.tab}").results(VerticalScroll):
            getattr(room, f"scroll_{where}")(animate=False)

    def action_pause(self) -> None:
        """Hold the moment that is shown, or go on."""
        player = self.player
        if player is None:
            return
        if player.is_live or not player.is_paused:
            player.hold()
        else:
            player.is_paused = False

    def action_jump(self, tenths: int) -> None:
        """Go back or forward, by tenths of what is seen."""
        if self.player is not None:
            self.player.hold()
            self.player.seek(self.player.shown + STEP * tenths * self.view().window)

    def action_seek(self, moment: float) -> None:
        """Go to a moment, and on from there."""
        if self.player is not None:
            self.player.is_paused = False
            self.player.seek(moment)

    def action_live(self) -> None:
        """Go to the newest there is."""
        self._cursor = None
        if self.player is not None:
            self.player.seek(self.player.end)

    def action_zoom(self, step: int) -> None:
        """Look at more, or less, of the past."""
        if self.player is not None:
            self._window = min(86400.0, max(0.001, (self._window or self.usual_window()) * ZOOM**step))

    def action_cursor(self, step: int) -> None:
        """Point at the next column of the timeline, or at the one before."""
        if self.player is None:
            return
        self.player.hold()
        view = self.view()
        begin, end = view.span
        column = (end - begin) / view.columns
        at = end + 0.5 * column if self._cursor is None else self._cursor
        self._cursor = min(max(at + step * column, begin + 0.5 * column), end - 0.5 * column)
        self.draw_panel()

    def action_wait(self, step: int) -> None:
        """Point at the next wait of compute, or at the one before, and go there if it is out of sight."""
        player = self.player
        if player is None:
            return
        player.hold()
        view = self.view()
        begin, end = view.span
        at = self._cursor if self._cursor is not None else (end if step < 0 else begin)
        least = UNSEEN * (end - begin) / view.columns
        found, ahead = find_wait(player.state, at, step, least), player.shown
        while found is None and step > 0 and ahead < player.end:  # farther and farther, so that none is passed over
            ahead = min(ahead + AHEAD * max(view.window, ahead - player.shown), player.end)
            found = find_wait(player.look(ahead), at, step, least)
        if found is None:
            self.notify(f"no wait {'behind' if step > 0 else 'before'} {at:.3f} s is told")
            return
        if not begin <= found <= end:
            player.seek(min(found + view.window / 2, player.end - 1e-9))
        self._cursor = found
        self.draw_panel()

    def action_speed(self, step: int) -> None:
        """Replay faster or slower."""
        if self.player is not None:
            at = bisect_left(SPEEDS, self.player.speed)
            self.player.speed = SPEEDS[min(len(SPEEDS) - 1, max(0, at + step))]
            self.notify(f"replay at {self.player.speed:g} times the speed")

    def action_picture(self) -> None:
        """Keep what is seen, as SVG and as text, for a report."""
        name = self._pictures / f"klotski-monitor-{datetime.now():%H%M%S}"
        try:
            name.with_suffix(".svg").write_text(self.export_screenshot(title="klotski-monitor"))
            if self._watch is not None:
                with name.with_suffix(".txt").open("w") as file:
                    console = Console(file=file, width=self.size.width, no_color=True)
                    for title in PANELS:
                        console.rule(title)
                        console.print(draw(title, self.view()))
        except OSError as error:
            self.notify(f"{name}.svg could not be written: {error.strerror}", severity="error", markup=False)
        else:
            self.notify(f"written: {name}.svg and .txt", markup=False)
