"""The contract of an executor, and the registry by name."""

from collections.abc import Callable
from typing import Protocol

from klotski.errors import ConfigError
from klotski.schema import RunConfig
from klotski.telemetry import Recorder, RunLog, Totals

__all__ = ["Executor", "create"]


class Executor(Protocol):
    """Carries out one run.

    `run` writes results and events through `log` and `recorder` as they come, and keeps `totals`
    true at all times: whatever ends the run, they say how far it got. It raises a `KlotskiError`
    for what a user can mend.
    """

    mode: str
    """`measured` or `predicted`."""

    def run(self, config: RunConfig, log: RunLog, recorder: Recorder, totals: Totals) -> None:
        """Carry out the run."""


def create(name: str) -> Executor:
    """An executor by the name of its config option.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in EXECUTORS:
        raise ConfigError(f"executor={name} does not exist; there are {', '.join(EXECUTORS)}")
    return EXECUTORS[name]()


def _torch() -> Executor:
    from klotski.executors.torch import TorchExecutor  # here, so that a refused config is refused at once

    return TorchExecutor()


EXECUTORS: dict[str, Callable[[], Executor]] = {"auto": _torch, "torch": _torch}
