"""Where a run's story comes from: its folder, read as it grows.

Everything here forgives: a line that is torn, no JSON, or of a newer version is left out and counted,
and a file that is not there yet is empty. Nothing is ever written.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil
import yaml

__all__ = ["Run", "Status", "Tail", "find_runs", "read_events"]

CHUNK = 256 << 10  # bytes that are read at a time, so that a long file does not hold up the screen

decoder = msgspec.json.Decoder()


class Status(NamedTuple):
    """How a run is: `running`, `ok`, `failed`, `interrupted`, or `dead` (its process is gone, and said nothing)."""

    word: str
    error: str | None = None

    @property
    def is_running(self) -> bool:
        """Whether there is more to come."""
        return self.word == "running"


class Run:
    """A run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.identity = read_json(folder / "run.json")
        self._config: dict[str, Any] = {}

    @property
    def start(self) -> float:
        """Wall-clock time at which the run's clock began, in seconds."""
        return float(self.identity.get("start", 0.0))

    @property
    def pid(self) -> int | None:
        """Its process, if that ran on this machine and may still be there."""
        pid = self.identity.get("pid")
        return pid if isinstance(pid, int) and self.identity.get("host") == os.uname().nodename else None

    def plan(self) -> dict[str, Any]:
        """What was planned; nothing before the plan was made."""
        return read_json(self.folder / "plan.json")

    def metrics(self) -> dict[str, Any]:
        """What came of it; nothing before it has ended."""
        return read_json(self.folder / "metrics.json")

    def config(self) -> dict[str, Any]:
        """What it was composed of, group by group. Does not change any more, and takes long to read."""
        if not self._config:
            try:
                content = yaml.safe_load((self.folder / ".hydra" / "config.yaml").read_bytes())
            except (OSError, yaml.YAMLError):
                return {}
            self._config = content if isinstance(content, dict) else {}
        return self._config

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
            return Status(str(metrics.get("status", "ok")), metrics.get("error"))
        if not self.folder.is_dir():
            return Status("dead", "its folder is gone")
        if self.pid is None:
            return Status("running")
        try:
            process = psutil.Process(self.pid)
            alive = process.create_time() <= self.start + 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            alive = False
        return Status("running") if alive else Status("dead", "its process is gone and left no metrics.json")


class Tail:
    """Reads a file of JSON lines as far as it has come; a line counts once its newline is there."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._offset = 0
        self._rest = b""
        self.damaged = 0
        """Lines that were no JSON object."""
        self.position = 0
        """Where in the file the line after the last one given begins."""

    def read(self) -> Iterator[dict[str, Any]]:
        """What has come since the last time, a few megabytes at most."""
        try:
            with self._file.open("rb") as file:
                if self._offset > file.seek(0, os.SEEK_END):  # another run has taken its place
                    self._offset, self._rest, self.position = 0, b"", 0
                file.seek(self._offset)
                data = file.read(CHUNK)
        except OSError:
            return
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.position += len(line) + 1
            event = decode(line)
            if event is None:
                self.damaged += 1
            else:
                yield event


def read_events(file: Path, begin: int, end: int) -> Iterator[dict[str, Any]]:
    """The events in whole lines of a file between two positions; none if it is gone."""
    try:
        with file.open("rb") as lines:
            lines.seek(begin)
            data = lines.read(end - begin)
    except OSError:
        return
    for line in data.split(b"\n"):
        event = decode(line)
        if event is not None:
            yield event


def decode(line: bytes) -> dict[str, Any] | None:
    """A line's JSON object; None if it is damaged."""
    try:
        event = decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return event if isinstance(event, dict) else None


def find_runs(folder: Path) -> list[Run]:
    """All runs under a folder, the newest first; those that are running before all others."""
    runs = [Run(file.parent) for file in folder.rglob("run.json")]
    return sorted(runs, key=lambda run: (not run.status().is_running, -run.start))


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; an empty one if it is not there, or damaged."""
    try:
        content = msgspec.json.decode(file.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}
