"""The end of a sweep, as Hydra tells it; the one module of the room that knows Hydra.

Hydra calls `on_multirun_end` when every job has come to an end, also to a refusal, which the command
tells and leaves behind. A fault of ours, or Ctrl-C, ends the sweep without this call: `klotski-report`
makes the same, then and at any time, from what is there.
"""

import logging
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from klotski.errors import KlotskiError

__all__ = ["SweepTable"]

logger = logging.getLogger(__name__)


class SweepTable(Callback):
    """Ends every sweep in a table, `results.csv`, `results.jsonl`, and plots."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """All jobs have ended."""
        from klotski.report.making import make_report

        try:
            make_report([Path(config.hydra.sweep.dir)])
        except KlotskiError as error:  # what the jobs did is in their folders
            logger.error("%s", error)
