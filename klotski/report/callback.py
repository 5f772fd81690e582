"""The end of a sweep, as Hydra tells it; the one module of the room that knows Hydra.

Hydra calls `on_multirun_end` when every job has come to an end, also to a refusal, which the command
tells and leaves behind. A fault of ours, or Ctrl-C, ends the sweep without this call: `klotski-report`
makes the same table, then and at any time, from what is there.
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
    """Ends every sweep in a table, `results.csv` and `results.jsonl`."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """All jobs have ended."""
        from klotski.report.files import open_folder, write_rows
        from klotski.report.rows import collect
        from klotski.report.table import print_table

        folder = Path(config.hydra.sweep.dir)
        try:
            rows = collect([folder])
            print_table(rows)
            files = write_rows(rows, open_folder(folder))
            print(f"files     {folder}: {', '.join(file.name for file in files)}")
            print(f"plots     klotski-report {folder}")
        except KlotskiError as error:  # what the jobs did is in their folders
            logger.error("%s", error)
