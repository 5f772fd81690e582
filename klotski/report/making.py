"""A report on some folders: table, files and plots, for the command and for the end of a sweep."""

import logging
from collections.abc import Sequence
from os.path import commonpath
from pathlib import Path

from klotski.errors import OutputError
from klotski.report.files import open_folder, write_rows
from klotski.report.published import compare, print_comparison, write_comparison
from klotski.report.rows import collect
from klotski.report.table import print_table

__all__ = ["make_report"]


def make_report(folders: Sequence[Path], out: Path | None = None) -> None:
    """Prints the table, and writes the files and plots (None: into what holds all folders).

    Raises:
        ConfigError: a folder does not exist, or no run is in it.
        OutputError: the files cannot be written.
    """
    # Where its cache of fonts lies, and that it is being built, is matplotlib's own business.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        rows = collect(folders)
    except OSError as error:
        raise OutputError(f"{error.filename} could not be read: {error.strerror}") from error
    print_table(rows)
    folder = open_folder(out or Path(commonpath([each.absolute() for each in folders])))
    from klotski.report.plots import draw_plots  # here, so that a misspelt folder is refused at once

    files = write_rows(rows, folder) + draw_plots(rows, folder)
    if comparisons := compare(rows):
        print_comparison(comparisons)
        files += write_comparison(comparisons, folder)
    print(f"files     {folder}: {', '.join(file.name for file in files)}")
