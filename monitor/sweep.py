"""A sweep: the jobs of one command, one behind the other, each a run in a folder below the sweep's."""

from pathlib import Path
from typing import NamedTuple

import yaml

from monitor.facts import JsonFile
from monitor.source import Run, Status, is_there

__all__ = ["Job", "Sweep", "find_sweep", "varied"]

MARK = "multirun.yaml"  # which Hydra writes as the sweep begins


class Job(NamedTuple):
    """One of the runs. `settings`: what was set for it, by key."""

    run: Run
    status: Status
    settings: dict[str, str]


class Sweep:
    """A sweep's folder. Runs that it has had keep what they know."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._about = JsonFile(folder / "sweep.json")
        self._known: dict[str, tuple[Run, dict[str, str]]] = {}

    @property
    def total(self) -> int | None:
        """Jobs that it will have had; None where that is not said."""
        jobs = self._about.read().number("jobs")
        return None if jobs is None else int(jobs)

    def jobs(self) -> list[Job]:
        """Those that have begun, in order."""
        folders = [each for each in listed(self.folder) if is_job(each.name) and is_there(each / "run.json")]
        return [self._job(folder) for folder in sorted(folders, key=lambda each: int(each.name))]

    def _job(self, folder: Path) -> Job:
        if folder.name not in self._known:
            self._known[folder.name] = Run(folder), settings_of(folder)
        run, settings = self._known[folder.name]
        return Job(run, run.status(), settings)


def is_job(name: str) -> bool:
    """Whether a folder is named as a job's."""
    return name.isdecimal() and len(name) < 10


def find_sweep(folder: Path) -> Sweep | None:
    """The sweep that a folder is of, or that its run is a job of; None: it is of no sweep."""
    for each in (folder, folder.parent):
        if is_there(each / MARK):
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
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    pairs = (str(line).partition("=") for line in lines) if isinstance(lines, list) else ()
    return {key.lstrip("+~"): value for key, _, value in pairs}


def listed(folder: Path) -> list[Path]:
    """What is in a folder; nothing if it is gone."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []
