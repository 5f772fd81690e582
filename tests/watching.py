"""The monitor as a process in a terminal that is read, but that nobody sees."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

__all__ = ["Watcher", "watching"]

KEPT = 1 << 20  # bytes of what was drawn last
ARROWS = {"left": "\x1b[D", "right": "\x1b[C", "home": "\x1b[H", "end": "\x1b[F"}


class Watcher:
    """A monitor that is attached to a run."""

    def __init__(self, command: list[str], size: tuple[int, int]) -> None:
        self._terminal, inner = pty.openpty()
        width, height = size
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        environment = os.environ | {"TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES"):
            environment.pop(name, None)
        self._began = time.monotonic()
        self._popen = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment)
        os.close(inner)
        self.process = psutil.Process(self._popen.pid)
        self.drawn = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def press(self, *keys: str) -> None:
        """Keys by their names, or the characters that they are."""
        for key in keys:
            os.write(self._terminal, ARROWS.get(key, key).encode())
            time.sleep(0.3)  # a key that follows at once would be taken for a part of the escape sequence

    def until_drawn(self, *words: str, seconds: float = 240.0) -> float:
        """Wait until all words have been drawn; returns the seconds since the process was started."""
        while not all(word.encode() in self.drawn for word in words):
            took = time.monotonic() - self._began
            if took > seconds or self._popen.poll() is not None:
                raise TimeoutError(f"{words} were not drawn within {took:.1f} s")
            time.sleep(0.005)
        return time.monotonic() - self._began

    @property
    def cpu_seconds(self) -> float:
        """What it has taken of the cores so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def close(self) -> None:
        """End it."""
        self._popen.kill()
        self._popen.wait()
        self._reader.join()
        os.close(self._terminal)

    def _read(self) -> None:
        with suppress(OSError):  # it has closed its end
            while data := os.read(self._terminal, 1 << 16):
                self.drawn = (self.drawn + data)[-KEPT:]


@contextmanager
def watching(run: Path, size: tuple[int, int] = (160, 50)) -> Iterator[Watcher]:
    """A monitor attached to a run's folder."""
    watcher = Watcher([sys.executable, "-m", "monitor", str(run)], size)
    try:
        yield watcher
    finally:
        watcher.close()
