"""A sweep: the jobs of one command, one behind the other, each a run in a folder below the sweep's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from monitor.source import Run, Status, read_json

__all__ = ["Job", "Sweep", "find_sweep"]

MARK = "multirun.yaml"  # which Hydra writes as the sweep begins


class Job(NamedTuple):
    """One of the runs. `settings`: what was set for it, by key; `metrics`: empty until it has ended."""

    run: Run
    status: Status
    settings: dict[str, str]
    metrics: dict[str, Any]


class Sweep:
    """A sweep's folder. What has ended is read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ended: dict[str, Job] = {}

    @property
    def total(self) -> int | None:
        """Jobs that it will have had; None where that is not said."""
        jobs = read_json(self.folder / "sweep.json").get("jobs")
        return jobs if isinstance(jobs, int) else None

    def jobs(self) -> list[Job]:
        """Those that have begun, in order."""
        return list(self._jobs())

    def _jobs(self) -> Iterator[Job]:
        folders = [each for each in listed(self.folder) if each.name.isdecimal() and (each / "run.json").is_file()]
        for folder in sorted(folders, key=lambda each: int(each.name)):
            if folder.name not in self._ended:
                run = Run(folder)
                job = Job(run, run.status(), settings_of(folder), run.metrics())
                if job.status.is_running:
                    yield job
                    continue
                self._ended[folder.name] = job
            yield self._ended[folder.name]


def find_sweep(folder: Path) -> Sweep | None:
    """The sweep that a folder is of, or that its run is a job of; None: it is of no sweep."""
    for each in (folder, folder.parent):
        if (each / MARK).is_file():
            return Sweep(each)
    return None


def varied(jobs: list[Job]) -> list[str]:
    """The keys of settings that are not the same for all jobs."""
    keys = dict.fromkeys(key for job in jobs for key in job.settings)
    return [key for key in keys if len({job.settings.get(key) for job in jobs}) > 1]


def settings_of(folder: Path) -> dict[str, str]:
    """What was set for a job alone, by key."""
    try:
        lines = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_bytes())
    except (OSError, yaml.YAMLError):
        return {}
    pairs = (str(line).partition("=") for line in lines) if isinstance(lines, list) else ()
    return {key.lstrip("+~"): value for key, _, value in pairs}


def listed(folder: Path) -> list[Path]:
    """What is in a folder; nothing if it is gone."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []
