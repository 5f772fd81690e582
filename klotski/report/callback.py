"""The begin and the end of a sweep, as Hydra tells them; the one module of the room that knows Hydra.

Hydra calls `on_multirun_end` when every job has come to an end, also to a refusal, which the command
tells and leaves behind. A fault of ours, or Ctrl-C, ends the sweep without this call: `klotski-report`
makes the same, then and at any time, from what is there.
"""

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from klotski.errors import KlotskiError

__all__ = ["SweepTable"]

logger = logging.getLogger(__name__)


class SweepTable(Callback):
    """Ends a sweep in a table, `results.csv`, `results.jsonl`, and plots; `sweep.json` says how many jobs it has."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """No job has begun."""
        jobs = count_jobs([*config.hydra.overrides.task, *params(config)])
        with suppress(OSError, OmegaConfBaseException):  # of which the first job tells
            folder = Path(config.hydra.sweep.dir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "sweep.json").write_text(json.dumps({"jobs": jobs}) + "\n")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """All jobs have ended."""
        from klotski.report.making import make_report

        try:
            make_report([Path(config.hydra.sweep.dir)])
        except KlotskiError as error:  # what the jobs did is in their folders
            logger.error("%s", error)


def params(config: DictConfig) -> list[str]:
    """What the sweeper is to vary beside what the command says; the command has the last word."""
    said = {override.partition("=")[0] for override in config.hydra.overrides.task}
    return [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items() if key not in said]


def count_jobs(overrides: Sequence[str]) -> int | None:
    """How many jobs a sweep over these has; None: some choices are found as it runs."""
    count = 1
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_sweep_override():
            if isinstance(override.value(), Glob):
                return None
            count *= len(list(override.sweep_string_iterator()))
    return count
