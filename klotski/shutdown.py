"""How a run ends before its time: signals become KeyboardInterrupt, and the first error is the one that is reported."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, NoReturn

__all__ = ["CleanUp", "interrupted_by_signals", "uninterrupted"]

logger = logging.getLogger(__name__)

ENDING = ("SIGTERM", "SIGHUP")  # what a service manager sends, and a terminal that is closed; Windows has no SIGHUP

MOMENT_S = 0.05  # until this hook has returned: raised inside of it, the interrupt would be dropped again


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt for SIGTERM and SIGHUP as for Ctrl-C, once, so that nothing cuts the clean-up short.

    A second Ctrl-C does. A SIGHUP that the process was started to ignore (`nohup`) stays ignored. A KeyboardInterrupt
    that Python drops, because a finalizer happened to run when it was raised, is raised again.
    """
    if threading.current_thread() is not threading.main_thread():  # Python sets handlers on no other
        yield
        return
    numbers = [number for name in ENDING if (number := getattr(signal, name, None)) is not None]
    before = {number: signal.getsignal(number) for number in (*numbers, signal.SIGINT)}
    hook = sys.unraisablehook

    def interrupt(signum: int, frame: object) -> NoReturn:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    def raise_again(dropped: Any) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            threading.Timer(MOMENT_S, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            hook(dropped)

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    sys.unraisablehook = raise_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back the signals that end a run until the block has ended; the first of them is handled then."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    numbers = [number for name in (*ENDING, "SIGINT") if (number := getattr(signal, name, None)) is not None]
    before = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    for number in before:
        signal.signal(number, lambda signum, frame: held.append(signum))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


class CleanUp(ExitStack):
    """An ExitStack that keeps the first error: what goes wrong in a callback after it is only logged."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Call all callbacks, last first.

        Raises:
            BaseException: what a callback raised, where no error came before it.
        """
        try:
            return bool(super().__exit__(kind, error, trace))
        except BaseException as later:
            if error is None or later is error:
                raise
            logger.warning("while the run was cleaned up: %s", str(later) or type(later).__name__)
            return False
