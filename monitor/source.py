"""Where a run's story comes from: its folder, read as it grows.

Everything here forgives: a line that is torn, no JSON, or of a newer version is left out, and a file that is
not there yet is empty. Nothing is ever written.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import yaml

from monitor.events import DamagedError, Event, read_line
from monitor.facts import Facts, JsonFile
from monitor.units import when

__all__ = ["Run", "RunList", "Status", "Tail", "is_there", "read_events"]

CHUNK = 256 << 10  # bytes that are read at a time, so that a long file does not hold up the screen
QUIET = 900.0  # seconds without a word, after which a run of another machine is held to be gone
LATEST = 1e11  # seconds since 1970; no run begins behind them


class Status(NamedTuple):
    """How a run is.

    `running`, `ok`, `failed`, `interrupted`, `dead` (its process is gone, and said nothing), or `silent` (on another
    machine, where nobody can look).
    """

    word: str
    error: str = ""

    @property
    def is_running(self) -> bool:
        """Whether there is more to come."""
        return self.word == "running"


class Run:
    """A run's folder. Its files are read when they have changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = {name: JsonFile(folder / f"{name}.json") for name in ("run", "plan", "metrics")}
        self._config: Facts | None = None

    @property
    def identity(self) -> Facts:
        """Which version the folder has, and whose it is."""
        return self._files["run"].read()

    @property
    def start(self) -> float:
        """Wall-clock time at which the run's clock began, in seconds."""
        return min(max(0.0, self.identity.amount("start")), LATEST)

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine."""
        return self.identity.text("host") == os.uname().nodename

    def plan(self) -> Facts:
        """What was planned; nothing before the plan was made."""
        return self._files["plan"].read()

    def metrics(self) -> Facts:
        """What came of it; nothing before it has ended."""
        return self._files["metrics"].read()

    def config(self) -> Facts:
        """What it was composed of, group by group. Does not change any more, and takes long to read."""
        if self._config is None:
            try:
                self._config = Facts(yaml.safe_load((self.folder / ".hydra" / "config.yaml").read_bytes()))
            except OSError:  # it may still come
                return Facts()
            except (ValueError, yaml.YAMLError, RecursionError):
                self._config = Facts()
        return self._config

    @property
    def is_predicted(self) -> bool:
        """Whether nothing was really computed."""
        config = self.config()
        mode = self.identity.text("mode") or self.metrics().text("mode")
        if mode:
            return mode == "predicted"
        return config.text("executor", "name") == "simulate" or any(
            config.at(*keys) is True for keys in (("hw", "elsewhere"), ("dry_run",))
        )

    def log(self) -> list[str]:
        """The last lines of its log."""
        for name in ("klotski.log", "__main__.log"):
            try:
                with (self.folder / name).open("rb") as file:
                    file.seek(max(0, file.seek(0, os.SEEK_END) - (64 << 10)))
                    return file.read().decode(errors="replace").splitlines()[-500:]
            except OSError:
                continue
        return []

    def status(self) -> Status:
        """How it is now."""
        metrics = self.metrics()
        if metrics:
            return Status(metrics.text("status") or "ok", metrics.text("error"))
        if not is_there(self.folder):
            return Status("dead", "its folder is gone")
        pid = self.identity.number("pid")
        if not self.is_here or pid is None:
            quiet = time.time() - max(modified(self.folder / name) for name in ("run.json", "events.jsonl"))
            host = self.identity.text("host") or "a machine that is not named"
            return (
                Status("silent", f"it ran on {host}, and has said nothing for {when(quiet)}")
                if quiet > QUIET
                else (Status("running"))
            )
        return (
            Status("running")
            if is_alive(int(pid), self.start)
            else (Status("dead", "its process is gone and left no metrics.json"))
        )


def is_alive(pid: int, start: float) -> bool:
    """Whether a process that began before a time goes on."""
    try:
        process = psutil.Process(pid)
        return process.create_time() <= start + 1 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError, OverflowError):
        return False


def modified(file: Path) -> float:
    """When a file was last written; 0.0 if it is not there."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def is_there(path: Path) -> bool:
    """Whether a file or a folder can be seen."""
    try:
        path.stat()
    except OSError:
        return False
    return True


class Tail:
    """Reads a file of events as far as it has come; a line counts once its newline is there."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._offset = 0
        self._rest = b""
        self.damaged = 0
        """Lines that tell nothing."""
        self.position = 0
        """Where in the file the line after the last one given begins."""
        self.size = 0
        """Bytes of the file, when it was last looked at."""

    @property
    def is_replaced(self) -> bool:
        """Whether another run has taken the file's place."""
        return self.size < self._offset

    def read(self) -> Iterator[Event]:
        """What has come since the last time, a part of a megabyte at most."""
        try:
            with self._file.open("rb") as file:
                self.size = file.seek(0, os.SEEK_END)
                if self.is_replaced:
                    return
                file.seek(self._offset)
                data = file.read(CHUNK)
        except OSError:
            return
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.position += len(line) + 1
            try:
                event = read_line(line)
            except DamagedError:
                self.damaged += 1
            else:
                if event is not None:
                    yield event


def read_events(file: Path, begin: int, end: int) -> Iterator[Event]:
    """The events in whole lines of a file between two positions; none if it is gone."""
    try:
        with file.open("rb") as lines:
            lines.seek(begin)
            data = lines.read(end - begin)
    except OSError:
        return
    for line in data.split(b"\n"):
        try:
            event = read_line(line)
        except DamagedError:
            continue
        if event is not None:
            yield event


class RunList:
    """All runs under a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[Path, Run] = {}

    def find(self) -> list[tuple[Run, Status]]:
        """Those that there are now, the newest first; those that are running before all others."""
        folders = list(run_folders(self.folder))
        self._known = {folder: self._known.get(folder) or Run(folder) for folder in folders}
        found = [(run, run.status()) for run in self._known.values()]
        return sorted(found, key=lambda each: (not each[1].is_running, -each[0].start))


def run_folders(folder: Path) -> Iterator[Path]:
    """Folders with a `run.json`, and not what is inside of them. Those that vanish, or may not be read, have none."""
    for name, inside, files in os.walk(folder):
        if "run.json" in files:
            inside.clear()
            yield Path(name)
