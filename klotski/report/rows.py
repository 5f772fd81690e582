"""Runs as rows: what varied between them, and the figures that say what it did.

A column of settings is a key whose value differs between the runs. A group's option goes by its name,
as it is chosen (`pipeline`: `klotski`); keys that differ only because another option was chosen have no
column of their own, nor has a group whose option came with another group's.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path
from typing import Any

from klotski.errors import ConfigError
from klotski.report.runs import Run, Setting, find_runs, read_run

__all__ = ["FIGURES", "GROUP_SECONDS", "Row", "collect"]

Value = str | int | float | None

CASE = "paper"  # a key that says what several groups' options are
DISK_BUSY = "lane_busy_share.disk"
EFFICIENCY = "bound.efficiency"  # above one in files of versions that took a sampled rate for the most there is
GROUP_SECONDS = "group_seconds"
FIGURES = (
    "mode",
    "num_requests",
    "output_tokens_per_second",
    "elapsed_time",
    GROUP_SECONDS,
    "prefill_seconds",
    "decode_seconds",
    "decode_tokens_per_second",
    "bound.resource",
    EFFICIENCY,
    "bound.sweeps.disk.busy",
    "bound.sweeps.compute.bubble",
    "bubble_fraction",
    "bytes_moved.disk",
    DISK_BUSY,
    "prefetch.hit_rate",
    "prefetch.among_hottest",
    "prefetch.first_sweep.among_hottest",
    "peak_memory.device",
    "peak_memory.host",
    "peak_memory.process",
    "plan.n_batches",
    "plan.batch_size",
    "plan.next_resource",
)
"""Their places in `metrics.json`, where seconds, bytes and fractions of one are meant; and two that are made here.

`lane_busy_share.disk`: of the elapsed time, the share in which the disk was read. `group_seconds`: how long
a request was on its way, with all that shared its group's sweeps.
"""

SHARES = {
    "prefetch.hit_rate": "prefetch.requested",
    "prefetch.among_hottest": "prefetch.named",
    "prefetch.first_sweep.among_hottest": "prefetch.first_sweep.named",
}
"""Shares of what there was none of say nothing."""
PROMISED = sorted({path.partition(".")[0] for path in FIGURES} - {DISK_BUSY.partition(".")[0], GROUP_SECONDS})
"""What every run's `metrics.json` has."""


@dataclass(frozen=True)
class Row:
    """One run among others. `name`: its folder, seen from the folder that holds them all."""

    name: str
    run: Run
    settings: Mapping[str, Setting]
    error: str | None
    figures: Mapping[str, Value]

    @property
    def is_ok(self) -> bool:
        """Whether the run reached its end, so that its figures can be compared."""
        return self.run.status == "ok"

    def flat(self) -> dict[str, Value]:
        """The row under the names of its columns, as files have it."""
        state = {"status": self.run.status, "error": self.error}
        return {"run": self.name, **self.settings, **state, **self.figures}


def collect(folders: Sequence[Path]) -> list[Row]:
    """A row for every run in these folders: runs, sweeps, or whatever holds some.

    Raises:
        ConfigError: a folder does not exist, or no run is in it.
    """
    found: dict[Path, Run] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder")
        runs = [path.resolve() for path in find_runs(folder)]
        if not runs:
            raise ConfigError(f"there is no run in {folder}")
        found |= {path: read_run(path) for path in runs if path not in found}
    root = commonpath([path.parent for path in found])
    columns = varied(list(found.values()))
    return [row_of(str(path.relative_to(root)), run, columns) for path, run in found.items()]


def row_of(name: str, run: Run, columns: Sequence[str]) -> Row:
    """One run under the columns of all."""
    error = run.error
    missing = [key for key in PROMISED if key not in run.metrics]
    if run.status == "ok" and missing:
        error = f"metrics.json has no {', '.join(missing)}"
    settings = {key.removesuffix(".name"): run.config.get(key) for key in columns}
    return Row(name, run, settings, error, figures_of(run.metrics))


def figures_of(metrics: Mapping[str, Any]) -> dict[str, Value]:
    """All of `FIGURES`; None where `metrics.json` does not say."""
    figures = {path: look_up(metrics, path) for path in FIGURES}
    elapsed, requests, n, batch_size = (
        number(figures[path]) for path in ("elapsed_time", "num_requests", "plan.n_batches", "plan.batch_size")
    )
    if elapsed:
        busy = number(look_up(metrics, "lane_busy_seconds.disk"))
        # What was read ahead as the last sweep ended counts as well, and may take longer.
        figures[DISK_BUSY] = min(1.0, busy / elapsed) if busy is not None else None
    if elapsed and requests and n and batch_size:
        figures[GROUP_SECONDS] = elapsed * min(n * batch_size, requests) / requests
    if (number(figures[EFFICIENCY]) or 0.0) > 1:
        figures[EFFICIENCY] = None
    for share, whole in SHARES.items():
        if not look_up(metrics, whole):
            figures[share] = None
    return figures


def number(value: Value) -> float | None:
    """A figure to compute with; None if it is a word, or not there."""
    return value if isinstance(value, int | float) else None


def look_up(metrics: Mapping[str, Any], path: str) -> Value:
    """What lies at a dotted path, if it is a number or a word."""
    value: Any = metrics
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else None


def varied(runs: Sequence[Run]) -> list[str]:
    """The keys that have a column, in the order in which configs have them."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [key for key in keys if len(values_of(key, runs)) > 1 and not is_explained(key, runs)]


def values_of(key: str, runs: Sequence[Run]) -> set[Setting]:
    """The values that runs have of a key; a run that has no such key has no other value."""
    return {run.config[key] for run in runs if key in run.config}


def is_explained(key: str, runs: Sequence[Run]) -> bool:
    """Whether a key differs only as an option does that has a column: its own group's, or, of an option, another's.

    What was set for a run is not explained by anything else that was.
    """
    group, _, name = key.partition(".")
    chosen = {each for run in runs for each in run.overridden}
    if key.removesuffix(".name") in chosen:
        return False
    options = chosen if name == "name" else [group]
    return follows(key, CASE, runs) or any(follows(key, f"{option}.name", runs) for option in options)


def follows(key: str, option: str, runs: Sequence[Run]) -> bool:
    """Whether all runs that chose the same option of a group have the same value of a key."""
    alike: dict[Setting, list[Run]] = defaultdict(list)
    for run in runs:
        if option in run.config:
            alike[run.config[option]].append(run)
    return bool(alike) and all(len(values_of(key, each)) < 2 for each in alike.values())
