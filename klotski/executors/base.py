"""The contract of an executor, and the registry by name."""

import os
import socket
from collections.abc import Callable, MutableMapping
from typing import Protocol

from klotski import openmp
from klotski.assets import BUNDLED
from klotski.core import Products
from klotski.errors import ConfigError
from klotski.executors.garbage import uncollected
from klotski.planner.hardware import find_gpus, given_cores, granted_cores, is_gpu
from klotski.schema import HwConfig, LoadFormat, ModelConfig, RunConfig, has_gpu, read_hardware
from klotski.telemetry import Recorder, RunLog, Totals
from klotski.units import format_size, parse_count

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
    if machine := another_machine(config.hw):
        raise ConfigError(f"{machine}; set hw=auto to run here, or executor=simulate to predict")
    check_memory(config.hw)
    if config.pipeline.products is Products.batch:
        raise ConfigError(
            "pipeline.products=batch is how other engines multiply, and can only be predicted; set executor=simulate"
        )
    settle_threads(config.hw, os.environ)
    settle_allocator(os.environ)
    from klotski.executors.torch import TorchExecutor  # here, so that a refused config is refused at once

    return TorchExecutor()


def settle_threads(hw: HwConfig, environment: MutableMapping[str, str]) -> None:
    """Say how OpenMP's threads behave, before torch is loaded.

    They are bound where they have all cores to themselves and do the arithmetic. Where a GPU does, nothing is gained,
    and the driver's own threads would stay on the core of the one that starts them; two runs with a few threads each,
    as set or by a CPU quota, would be bound to the same few cores.
    """
    have_all = parse_count("hw.threads", hw.threads) is None and granted_cores() == given_cores()
    openmp.settle(environment, have_all_cores=have_all and (hw.gpu == "none" or not find_gpus()))


def settle_allocator(environment: MutableMapping[str, str]) -> None:
    """Let torch grow its pieces of a GPU's memory, before it is loaded, unless its user has said how.

    Otherwise what activations of one size leave is lost to those of another, and a budget that was planned to the
    brim is not enough.
    """
    if not any(f"PYTORCH_{kind}ALLOC_CONF" in environment for kind in ("", "CUDA_", "HIP_")):
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


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
    from klotski.weights.finding import find_folder

    path, is_away = config.model.path, lacks_weights(config.model)
    if machine := another_machine(config.hw):
        weights = f", and the weights of {path} are not here either" if is_away else ""
        there = "" if config.hw.elsewhere else "there the same command runs, and "
        return f"{machine}{weights}; {there}hw=auto executor=torch runs here"
    if is_away and find_folder(path):
        return f"{path} is a config without weights; with the files of its checkpoint beside it, the same command runs"
    if is_away:
        return f"the weights of {path} are not on this machine; executor=torch fetches and runs them"
    return None


def another_machine(hw: HwConfig) -> str | None:
    """By what the machine that is described is not the one at hand; None: it is, as far as can be told."""
    sentence = f"hw={hw.name} is another machine than this one"
    if hw.elsewhere or hw.host not in ("", socket.gethostname()):
        return sentence
    if has_gpu(hw) and not is_at_hand(hw.gpu):
        return f"{sentence}, which has no {'GPU' if hw.gpu == 'auto' else hw.gpu} that torch can use"
    return None


def is_at_hand(gpu: str) -> bool:
    """Whether there is such a GPU, and torch can use it; torch takes seconds to load, and is asked last."""
    if not sizes_of(gpu):
        return False
    from klotski.executors.devices import find_gpu

    return find_gpu(gpu) is not None


def sizes_of(gpu: str) -> list[int]:
    """Bytes of memory of each GPU of this name, or with `auto` of any, that is here."""
    return [size for found, size in find_gpus() if gpu == "auto" or is_gpu(gpu, found)]


def check_memory(hw: HwConfig) -> None:
    """Refuse a budget that is more than the GPU at hand has: GB and GiB are easily confused."""
    granted, sizes = read_hardware(hw, "device_memory"), sizes_of(hw.gpu)
    if granted and sizes and granted > max(sizes) and is_at_hand(hw.gpu):
        raise ConfigError(
            f"hw.device_memory={hw.device_memory} is more than the {format_size(max(sizes))} of the GPU; set it to "
            "less, or executor=simulate to predict"
        )


def lacks_weights(model: ModelConfig) -> bool:
    """Whether of a model there is a config or a shape here, and no weights. Those of any other are fetched."""
    from klotski.weights.finding import find_folder, find_local, has_weights

    if model.load_format is LoadFormat.dummy or model.path == BUNDLED:
        return False
    if folder := find_folder(model.path):
        return (folder / "config.json").exists() and not has_weights(folder)
    return bool(model.shape) and find_local(model.path) is None


EXECUTORS: dict[str, Callable[[RunConfig], Executor]] = {"auto": _auto, "torch": _torch, "simulate": _simulate}
