"""How far the run is: a bar on a terminal, a plain line now and then otherwise."""

import time
from contextlib import suppress
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

__all__ = ["Progress"]

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows requests done, output tokens per second and the time left. A context manager."""

    def __init__(self, num_requests: int, console: Console, *, is_predicted: bool = False) -> None:
        """`is_predicted`: the tokens are nobody's, and how fast they come says nothing."""
        self._is_predicted = is_predicted
        self._num_requests = num_requests
        self._console = console
        self._started = self._said = time.monotonic()
        self._bar = Bar(
            TextColumn(f"{{task.fields[done]}}/{num_requests} requests"),
            BarColumn(),
            TextColumn("predicted" if is_predicted else "{task.fields[rate]:.1f} tokens/s"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("tokens", total=None, done=0, rate=0.0)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # the terminal may be gone, and the run goes on
            self._bar.stop()

    def advance(self, requests: int, output_tokens: int, expected_tokens: int) -> None:
        """Requests and output tokens so far; at most `expected_tokens` come in all."""
        now = time.monotonic()
        rate = output_tokens / max(now - self._started, 1e-9)
        self._bar.update(self._task, completed=output_tokens, total=expected_tokens, done=requests, rate=rate)
        if self._console.is_terminal or now - self._said < SECONDS_BETWEEN_LINES:
            return
        self._said = now
        left = f", at most {max(expected_tokens - output_tokens, 0) / rate:.0f} s left" if rate else ""
        speed = " predicted" if self._is_predicted else f", {rate:.1f} tokens/s{left}"
        with suppress(OSError):
            self._console.print(f"{requests} of {self._num_requests} requests{speed}", highlight=False)
