"""The run's folder, as other programs rely on it.

A line of `results.jsonl` or `errors.jsonl` is written by one system call as soon as it is known:
whatever kills the process, every line that ends in a newline is whole. (Linux may stop a write
between two pages if the kill comes in its very middle; a tail without a newline is no line.)
`metrics.json` is written whatever happens, even when the disk has filled up: a reserve of a few
pages is given back first.

A folder belongs to one run. `.lock` keeps a second one out while the first goes on, and a folder that
holds results is refused: finished work is never overwritten.
"""

import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
from filelock import FileLock, Timeout

from klotski.errors import OutputError

__all__ = ["SCHEMA_VERSION", "RunLog"]

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1  # of everything in the folder; raised when a reader would have to change
RESERVE = 64 << 10  # bytes
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP)  # how a file system says that it has none
LINES = ("results.jsonl", "errors.jsonl", "events.jsonl")  # the files that every accepted run has
ELSEWHERE = "choose another folder with hydra.run.dir=FOLDER, or for a sweep with hydra.sweep.dir=FOLDER"


class RunLog:
    """Writes a run's files, each of which says whether the run is `measured` or `predicted`.

    Raises:
        OutputError: the folder belongs to another run, or a file cannot be written; the message names it and says why.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mode = "measured"
        self._began = time.time()
        self._started = time.monotonic()
        self._descriptors: dict[str, int] = {}
        self._opening = threading.Lock()
        self.num_errors = 0
        self._guard("run.json", lambda: folder.mkdir(parents=True, exist_ok=True))
        self._lock = FileLock(folder / ".lock")
        self._is_ours = False
        self._guard(".lock", self._claim)
        self._guard("run.json", self._open)

    def clock(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    def be(self, mode: str) -> None:
        """Say in `run.json`, and in all that follows, what the run is."""
        if mode != self.mode:
            self.mode = mode
            self._guard("run.json", self._identify)

    def result(self, line: dict[str, Any]) -> None:
        """One line of `results.jsonl`."""
        self._append("results.jsonl", msgspec.json.encode(line) + b"\n")

    def error(self, line: dict[str, Any]) -> None:
        """One line of `errors.jsonl`."""
        self.num_errors += 1
        self._append("errors.jsonl", msgspec.json.encode(line) + b"\n")

    def events(self, lines: bytes) -> None:
        """Lines of `events.jsonl`."""
        self._append("events.jsonl", lines)

    def plan(self, plan: dict[str, Any]) -> None:
        """`plan.json`. Config, workload and plan are accepted: the files that get a line at a time are opened."""
        content = {"mode": self.mode} | plan
        self._guard("plan.json", lambda: write_whole(self.folder / "plan.json", content))
        for name in LINES:
            self._guard(name, lambda name=name: self._descriptor(name))  # type: ignore[misc]

    def experts(self, experts: dict[str, Any]) -> None:
        """`experts.json`."""
        content = {"schema": SCHEMA_VERSION, "mode": self.mode} | experts
        self._note("experts.json", lambda: write_whole(self.folder / "experts.json", content))

    def hardware(self, text: str) -> None:
        """`hw/measured.yaml`, an option of the group `hw`."""

        def write() -> None:
            file = self.folder / "hw" / "measured.yaml"
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)

        self._note("hw/measured.yaml", write)

    def metrics(self, metrics: dict[str, Any]) -> None:
        """`metrics.json`; the last thing a run writes."""
        (self.folder / ".reserve").unlink(missing_ok=True)
        self._guard("metrics.json", lambda: write_whole(self.folder / "metrics.json", metrics))

    def routing(self, line: Mapping[str, Any]) -> None:
        """One line of `routing.jsonl`, which only a run has that records it."""
        self._append("routing.jsonl", msgspec.json.encode(line) + b"\n")

    def close(self) -> None:
        """Close the files; may be called twice."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])
        if self._is_ours:
            self._is_ours = False
            (self.folder / ".reserve").unlink(missing_ok=True)
        self._lock.release()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _claim(self) -> None:
        """Make the folder this run's own, unless another run is under way there or has left results."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise OutputError(f"{self.folder} belongs to a run that is under way; {ELSEWHERE}") from error
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            logger.warning("%s: %s; nothing keeps a second run out of the folder", self.folder, error.strerror)
        if found := finished_work(self.folder):
            self._lock.release()
            raise OutputError(f"{self.folder} holds {found} of an earlier run, which are kept; {ELSEWHERE}")
        self._is_ours = True

    def _open(self) -> None:
        (self.folder / ".reserve").write_bytes(bytes(RESERVE))
        self._identify()

    def _identify(self) -> None:
        identity = {
            "schema": SCHEMA_VERSION,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "start": self._began,
            "mode": self.mode,
        }
        write_whole(self.folder / "run.json", identity)

    def _descriptor(self, name: str) -> int:
        """The open file of that name; begun anew when it is first asked for."""
        with self._opening:  # once: opened a second time, by another thread, it would be emptied
            if name not in self._descriptors:
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
                self._descriptors[name] = os.open(self.folder / name, flags, 0o644)
            return self._descriptors[name]

    def _append(self, name: str, data: bytes) -> None:
        self._guard(name, lambda: write_all(self._descriptor(name), data))

    def _note(self, name: str, write: Callable[[], object]) -> None:
        """Write what no result depends on; a warning if that fails."""
        try:
            self._guard(name, write)
        except OutputError as error:
            logger.warning("%s", error)

    def _guard(self, name: str, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            what = "no space is left" if error.errno == errno.ENOSPC else error.strerror
            kept = "; what was finished is in results.jsonl" if name == "results.jsonl" else ""
            raise OutputError(f"{self.folder / name} could not be written: {what}{kept}") from error


def finished_work(folder: Path) -> str | None:
    """What a folder holds that a run may not overwrite; None: nothing."""
    results, metrics = folder / "results.jsonl", folder / "metrics.json"
    if results.exists() and results.stat().st_size:
        return "the results"
    try:
        done = msgspec.json.decode(metrics.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError):
        return None
    return "the figures" if done.get("num_requests") else None


def write_all(descriptor: int, data: bytes) -> None:
    """Append bytes whole or not at all; a line is one system call unless the kernel takes less."""
    size = os.fstat(descriptor).st_size
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:
        with suppress(OSError):  # the first reason is the one to tell
            os.ftruncate(descriptor, size)  # a full disk has taken half of it
        raise


def write_whole(file: Path, content: dict[str, Any]) -> None:
    """Replace a JSON file at once, so that no reader sees half of it."""
    draft = file.with_suffix(".draft")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
    draft.replace(file)
