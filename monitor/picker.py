"""The list of runs, to pick one from."""

from datetime import datetime
from pathlib import Path

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from monitor.source import Run, Status

__all__ = ["Picker"]

MOST = 200  # runs that are listed


class Picker(Vertical):
    """Runs by their place under a folder. Whoever reads the list keeps their place as it changes."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._runs: list[Run] = []
        self._labels: list[str] = []

    def compose(self) -> ComposeResult:
        """What can be done, and the list."""
        yield Static(id="lead", classes="panel", markup=False)
        yield OptionList(id="list", markup=False)

    def show(self, found: list[tuple[Run, Status]]) -> None:
        """Show these runs from now on."""
        parts = self.query("#lead").results(Static), self.query("#list").results(OptionList)
        for lead, options in zip(*parts, strict=False):  # one or both are gone while the app is closing
            lead.update(self._lead(len(found)))
            self._list(options, found)

    def _list(self, options: OptionList, found: list[tuple[Run, Status]]) -> None:
        labels = [self._label(run, status) for run, status in found[:MOST]]
        if labels == self._labels:
            return
        at = options.highlighted
        chosen = self._runs[at].folder if at is not None and at < len(self._runs) else None
        self._runs, self._labels = [run for run, _ in found[:MOST]], labels
        options.clear_options()
        options.add_options([Option(label, id=str(index)) for index, label in enumerate(labels)])
        if labels:
            options.highlighted = next((n for n, run in enumerate(self._runs) if run.folder == chosen), 0)

    def run_of(self, option: str | None) -> Run:
        """The run behind an option."""
        return self._runs[int(option or 0)]

    def name_of(self, run: Run) -> str:
        """Its folder, as short as it is understood where runs are looked for."""
        inside = run.folder.relative_to(self._folder) if run.folder.is_relative_to(self._folder) else run.folder
        return str(inside) if inside.parts else run.folder.name

    def _label(self, run: Run, status: Status) -> str:
        began = datetime.fromtimestamp(run.start).strftime("%Y-%m-%d %H:%M:%S")
        return f"{status.word:12}{began}  {self.name_of(run)}"

    def _lead(self, count: int) -> str:
        if count:
            return f"runs under {self._folder}, the newest first; enter shows one"
        return (
            f"There is no run under {self._folder} yet. In another terminal, start one: `klotski`, or in a checkout "
            "`make run`. It is listed here as soon as it has begun.\n\nw: what there will be to see"
        )
