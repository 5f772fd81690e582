"""The contract of an executor, and the registry by name."""

from collections.abc import Callable
from typing import Protocol

from klotski.core import Products
from klotski.errors import ConfigError
from klotski.executors.garbage import uncollected
from klotski.schema import LoadFormat, RunConfig, is_elsewhere
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


def create(config: RunConfig) -> Executor:
    """The executor that the config names; `auto` runs what can be run here, and predicts the rest.

    Raises:
        ConfigError: there is none of that name.
    """
    name = config.executor.name
    if name not in EXECUTORS:
        raise ConfigError(f"executor={name} does not exist; there are {', '.join(EXECUTORS)}")
    with uncollected():
        return EXECUTORS[name](config)


def _torch(config: RunConfig) -> Executor:
    if is_elsewhere(config):
        raise ConfigError(
            f"hw={config.hw.name} is another machine than this one; set hw=auto to run here, or executor=simulate to "
            "predict"
        )
    if config.pipeline.products is Products.batch:
        raise ConfigError(
            "pipeline.products=batch is how other engines multiply, and can only be predicted; set executor=simulate"
        )
    from klotski.executors.torch import TorchExecutor  # here, so that a refused config is refused at once

    return TorchExecutor()


def _simulate(config: RunConfig) -> Executor:
    from klotski.executors.simulate import SimulatedExecutor

    return SimulatedExecutor()


def _auto(config: RunConfig) -> Executor:
    reason = why_not_here(config)
    if reason is None:
        return _torch(config)
    from klotski.executors.simulate import SimulatedExecutor

    return SimulatedExecutor(reason)


def why_not_here(config: RunConfig) -> str | None:
    """Why a run can only be predicted, and how to run it for real; None if it can be run."""
    from klotski.weights import find_local

    model = config.model
    needs_weights = model.shape and model.load_format is not LoadFormat.dummy
    is_away = bool(needs_weights) and find_local(model.path) is None
    if is_elsewhere(config):
        weights = f", where the weights of {model.path} are not either" if is_away else ""
        return f"hw={config.hw.name} is another machine than this one{weights}; hw=auto executor=torch runs here"
    if is_away:
        return f"the weights of {model.path} are not on this machine; executor=torch fetches and runs them"
    return None


EXECUTORS: dict[str, Callable[[RunConfig], Executor]] = {"auto": _auto, "torch": _torch, "simulate": _simulate}
