"""A run as its folder tells it: what it was composed of, and what came of it.

A run may have been killed, may be under way, or may be older than this reader; whatever is missing,
the run is still a run, with a `status` and an `error` that say so.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Run", "Setting", "find_runs", "is_run", "read_run"]

Setting = str | int | float | bool | None

SIGNS = ("run.json", "metrics.json", ".hydra")  # any of them makes a folder a run's
UNFINISHED = "metrics.json is not there: the run is under way or was killed"


@dataclass(frozen=True)
class Run:
    """One run's folder.

    `status`: that of `metrics.json`, or `unfinished` or `unreadable`. `config`: every setting by its
    dotted key; empty where Hydra left none. `overridden`: the keys that were set for this run alone.
    `metrics`: empty where there are none to read.
    """

    folder: Path
    status: str
    error: str | None
    config: Mapping[str, Setting]
    overridden: frozenset[str]
    metrics: Mapping[str, Any]


def is_run(folder: Path) -> bool:
    """Whether a run has left its files in a folder."""
    return any((folder / sign).exists() for sign in SIGNS)


def find_runs(folder: Path) -> Iterator[Path]:
    """The folder itself, if it is a run's, and every run's folder below; jobs in the order of their numbers."""
    if is_run(folder):
        yield folder
    below = [each for each in folder.iterdir() if each.is_dir() and each.name != ".hydra"]
    for each in sorted(below, key=lambda path: (int(path.name) if path.name.isdecimal() else 1 << 32, path.name)):
        yield from find_runs(each)


def read_run(folder: Path) -> Run:
    """What a run's folder says; never raises for what is missing or torn."""
    config = read_yaml(folder / ".hydra" / "config.yaml")
    overrides = read_yaml(folder / ".hydra" / "overrides.yaml")
    status, error, metrics = read_metrics(folder / "metrics.json")
    return Run(
        folder,
        status,
        error,
        dict(flatten(config)) if isinstance(config, dict) else {},
        frozenset(str(each).partition("=")[0].lstrip("+~") for each in overrides or ()),
        metrics,
    )


def read_metrics(file: Path) -> tuple[str, str | None, dict[str, Any]]:
    """Status, error and content of `metrics.json`."""
    try:
        metrics = json.loads(file.read_bytes())
    except FileNotFoundError:
        return "unfinished", UNFINISHED, {}
    except OSError as error:
        return "unreadable", f"metrics.json could not be read: {error.strerror}", {}
    except ValueError:
        metrics = None
    if not isinstance(metrics, dict) or not isinstance(metrics.get("status"), str):
        return "unreadable", "metrics.json is torn: it has no status", {}
    return metrics["status"], metrics.get("error"), metrics


def read_yaml(file: Path) -> Any:
    """A YAML file's content; None where there is none, or not a whole one."""
    try:
        return yaml.safe_load(file.read_bytes())
    except (OSError, yaml.YAMLError):
        return None


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Setting]]:
    """Every setting of a nested config with its dotted key, but for those that follow from others."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        elif not str(value).startswith("${"):
            yield f"{prefix}{key}", value if isinstance(value, Setting) else json.dumps(value)
