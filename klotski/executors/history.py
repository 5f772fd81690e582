"""What earlier runs learned about a model, for the next: how it routes, and what this machine reached at it.

Routing is the model's alone. Rates depend on the host, the device, the dtype of the arithmetic and the number of
threads, and are found again by a run with the same ones. One file for each model, in `history=FOLDER` or the user's
cache. Nothing depends on it: without it, or where it cannot be read or written, a run begins as if it were the first.
"""

import hashlib
import logging
import os
import socket
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from klotski.pipeline import RoutingTable
from klotski.planner import NOMINAL, Rates
from klotski.planner.rates import NOMINAL_GPU
from klotski.units import user_path

__all__ = ["History", "Setup", "home_of"]

logger = logging.getLogger(__name__)

KEPT = ("disk", "start", "product", "compute", "dense_share", "turn", "step", "between", "wake")  # of the rates
KEPT_OF_A_GPU = ("link", "product", "compute", "dense_share", "turn", "step", "between", "cores", "cores_product")
OF_HOST = f"rates_{socket.gethostname()}_"  # a home may be shared between machines
RUNS = 5  # whose rates are remembered; machines are shared, so the median of them counts


class Setup(NamedTuple):
    """What rates depend on, beside the model and the host: the device's name, the dtype of the arithmetic, threads.

    `on_gpu`: the device has memory of its own, so that other rates are kept of it.
    """

    device: str
    dtype: str
    threads: int
    on_gpu: bool = False


class History:
    """What is known of the model in `folder`. `setting`: a folder, `none`, or `auto` for the user's cache.

    `find_setup`: says what is computed with. It may take torch, and is only asked where rates are known or kept.
    """

    def __init__(self, setting: str, name: str, folder: Path, find_setup: Callable[[], Setup]) -> None:
        self._file: Path | None = None
        self._known: dict[str, NDArray[Any]] = {}
        self._find_setup = find_setup
        if (home := home_of(setting)) is not None:
            self._file = home / f"{name}-{fingerprint(folder)}.npz"
            self._known = read(self._file)

    def recall(self, table: RoutingTable) -> bool:
        """Let a table begin with what earlier runs learned; False if there is nothing."""
        return table.recall(self._known)

    @property
    def rates(self) -> Rates | None:
        """What runs on this machine reached, in the median, and what is nominal beside it; None: no run."""
        if not any(name.startswith(OF_HOST) for name in self._known):
            return None
        return self.over(NOMINAL_GPU if self._setup.on_gpu else NOMINAL)

    def over(self, otherwise: Rates) -> Rates | None:
        """The same, beside what else is known; None: no run."""
        runs = self._runs()
        if not runs:
            return None
        known = dict(zip(self._kept, map(median, zip(*runs, strict=True)), strict=True))
        return otherwise.because("measured by earlier runs of this model", **known)

    def shares(self, experts: Sequence[int], top_k: int) -> list[list[float]] | None:
        """For each layer, the share of tokens that chose each expert; None: no run."""
        table = RoutingTable(experts)
        if not self.recall(table):
            return None
        return [(top_k * each / max(each.sum(), 1e-9)).tolist() for each in table.shares]

    @cached_property
    def _setup(self) -> Setup:
        return self._find_setup()

    @property
    def _kept(self) -> tuple[str, ...]:
        return KEPT_OF_A_GPU if self._setup.on_gpu else KEPT

    @property
    def _name(self) -> str:
        """Of the array of rates. Older versions' had the host's name alone, or `gpu` behind it."""
        setup = self._setup
        return f"{OF_HOST}{setup.device}_{setup.dtype}_{setup.threads} threads"

    def _runs(self) -> list[list[float]]:
        """What each run reached; another version may have kept something else."""
        runs: list[list[float]] = self._known.get(self._name, np.empty((0, 0))).tolist()
        return [rates for rates in runs if len(rates) == len(self._kept)]

    def keep(self, table: RoutingTable, rates: Rates | None) -> None:
        """Add what this run learned; None: nothing of the machine. What goes wrong is said, and fails no run."""
        if self._file is None:
            return
        known = {name: runs for name, runs in self._known.items() if name.startswith("rates_")} | table.arrays()
        runs = self._runs()
        if rates is not None:
            runs.append([getattr(rates, name) for name in self._kept])
        if runs:
            known[self._name] = np.array(runs[-RUNS:])
        try:
            write(self._file, known)
        except OSError as error:
            logger.warning("%s could not be written: %s; the next run begins anew", self._file, error.strerror)


def home_of(setting: str) -> Path | None:
    """The folder where runs keep what they learned; None: they keep nothing."""
    if setting == "none":
        return None
    return user_cache_path("klotski") / "history" if setting == "auto" else user_path(setting)


def fingerprint(folder: Path) -> str:
    """A name for a checkpoint that another one, or a changed one, does not share."""
    return hashlib.sha256(str(folder.resolve()).encode() + (folder / "config.json").read_bytes()).hexdigest()[:12]


def read(file: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file; none if it is not there, or damaged."""
    try:
        with file.open("rb") as data, np.load(data) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s could not be read (%s); this run begins anew", file, error)
        return {}


def write(file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Replace a file of arrays at once: two runs may end together."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.stem}-{socket.gethostname()}-{os.getpid()}.npz")
    np.savez(draft, **arrays)  # type: ignore[arg-type]
    draft.replace(file)
