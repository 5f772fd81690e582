"""What all benchmarks have in common: their options, and runs of ours in processes of their own under a hard limit."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.benchmarks.models import MODELS, folder_of, make

__all__ = ["OUTPUTS", "KilledError", "SlowError", "klotski", "lengths", "limited", "options", "read_options"]

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


def klotski(model: str, *overrides: str, budget: str = BUDGET, patience: float | None = None) -> dict[str, Any]:
    """The metrics of one run of ours. `patience`: seconds that it may take."""
    shutil.rmtree(RUN, ignore_errors=True)
    RUN.parent.mkdir(parents=True, exist_ok=True)
    settings = ["model=custom", f"model.path={folder_of(model)}", f"hw.device_memory={budget}", "workload=synthetic"]
    settings += ["history=none"]  # what one row learns is not to help another
    limited("-m", "klotski", *settings, *overrides, f"hydra.run.dir={RUN}", patience=patience)
    metrics: dict[str, Any] = json.loads((RUN / "metrics.json").read_text())
    return metrics


def lengths(requests: int, tokens_in: int, tokens_out: int) -> list[str]:
    """A synthetic workload."""
    return [
        f"workload.num_requests={requests}",
        f"workload.input_tokens={tokens_in}",
        f"workload.output_tokens={tokens_out}",
    ]


def limited(*arguments: str, settings: Mapping[str, str] = MappingProxyType({}), patience: float | None = None) -> str:
    """What a Python process under the limit says on standard output.

    Raises:
        KilledError: it ended with another status than 0; SlowError: because it took more seconds than `patience`.
    """
    watch = ["timeout", f"{patience:.1f}"] if patience else []
    command = [sys.executable, "-m", "tests.benchmarks.limited", LIMIT, *watch, sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings)
    if done.returncode == STOPPED:
        raise SlowError(f"stopped after {patience:.1f} s")
    if done.returncode:
        raise KilledError(f"status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout
