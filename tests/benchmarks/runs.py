"""What all benchmarks have in common: their options, and runs of ours in processes of their own under a hard limit."""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from tests.benchmarks.models import MODELS, folder_of, make

__all__ = [
    "OUTPUTS",
    "RUN",
    "KilledError",
    "SlowError",
    "disturbed",
    "klotski",
    "lengths",
    "limited",
    "metrics_in",
    "options",
    "predict",
    "read_options",
]

LIMIT = "3GiB"
BUDGET = "2950MiB"  # of the limit; the rest is the page cache's, for the interpreter's own files
OUTPUTS = Path(__file__).parents[2] / "outputs"
RUN = OUTPUTS / "bench" / "run"
STOPPED = 124  # the status by which `timeout` says that it stopped a process


def options(doc: str | None, repetitions: int) -> argparse.ArgumentParser:
    """The command line of a benchmark, `doc` its module's: which models, and how often."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--repetitions", type=int, default=repetitions)
    return parser


def read_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What was chosen; the models are there when this returns."""
    chosen = parser.parse_args()
    for name in chosen.models:
        make(name, folder_of(name))
    return chosen


class KilledError(Exception):
    """A process went over its limit, or failed."""


class SlowError(KilledError):
    """A process was stopped, because it took longer than it may."""


def klotski(
    model: str,
    *overrides: str,
    budget: str = BUDGET,
    patience: float | None = None,
    hardware: Path | None = None,
) -> dict[str, Any]:
    """The metrics of one run of ours. `patience`: seconds that it may take. `hardware`: where `hw/measured.yaml` is."""
    limited("-m", "klotski", *settings(model, budget, RUN, hardware), *overrides, patience=patience)
    return metrics_in(RUN)


def predict(model: str, *overrides: str, hardware: Path) -> dict[str, Any]:
    """The metrics of the same run as the simulator predicts it."""
    folder = RUN.with_name("predicted")
    arguments = settings(model, BUDGET, folder, hardware)
    command = [sys.executable, "-m", "klotski", *arguments, "executor=simulate", *overrides]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise KilledError(f"status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return metrics_in(folder)


def settings(model: str, budget: str, folder: Path, hardware: Path | None) -> list[str]:
    """What all runs have in common; `folder` is empty when this returns."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return [
        *(["--config-dir", str(hardware), "hw=measured"] if hardware else []),
        "model=custom",
        f"model.path={folder_of(model)}",
        f"hw.device_memory={budget}",
        "workload=synthetic",
        "history=none",  # what one row learns is not to help another
        f"hydra.run.dir={folder}",
    ]


def disturbed(run: Callable[[], dict[str, Any]]) -> tuple[float, dict[str, Any]]:
    """Of the cores' time during a run, the share that other programs took; and what the run returned."""
    before, own, began = busy_seconds(), children_seconds(), time.monotonic()
    found = run()
    others = busy_seconds() - before - (children_seconds() - own)
    return max(0.0, others) / (time.monotonic() - began) / (psutil.cpu_count() or 1), found


def busy_seconds() -> float:
    """Seconds that all cores together have worked, for whomever."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def children_seconds() -> float:
    """Those that they have worked for processes that this one began, and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def metrics_in(folder: Path) -> dict[str, Any]:
    """What a run left behind."""
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics


def lengths(requests: int, tokens_in: int, tokens_out: int) -> list[str]:
    """A synthetic workload."""
    return [
        f"workload.num_requests={requests}",
        f"workload.input_tokens={tokens_in}",
        f"workload.output_tokens={tokens_out}",
    ]


def limited(*arguments: str, variables: Mapping[str, str] = MappingProxyType({}), patience: float | None = None) -> str:
    """What a Python process under the limit says on standard output.

    Raises:
        KilledError: it ended with another status than 0; SlowError: because it took more seconds than `patience`.
    """
    watch = ["timeout", f"{patience:.1f}"] if patience else []
    command = [sys.executable, "-m", "tests.benchmarks.limited", LIMIT, *watch, sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)
    if done.returncode == STOPPED:
        raise SlowError(f"stopped after {patience:.1f} s")
    if done.returncode:
        raise KilledError(f"status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout
