"""The command `klotski-report`: the table, the files and the plots of runs that are there already."""

import argparse
import logging
import sys
from os.path import commonpath
from pathlib import Path

from klotski.errors import KlotskiError, OutputError
from klotski.report.files import open_folder, write_rows
from klotski.report.rows import collect
from klotski.report.table import print_table

__all__ = ["main"]


def main() -> int:
    """The command `klotski-report`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="klotski-report",
        description="A table of runs, results.csv, results.jsonl, and plots of what varied between them.",
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path, help="a run, a sweep, or what holds some")
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, help="where the files go; if not given, into what holds all FOLDERs"
    )
    arguments = parser.parse_args()
    # Where its cache of fonts lies, and that it is being built, is matplotlib's own business.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        report(arguments.folders, arguments.out)
    except KlotskiError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def report(folders: list[Path], out: Path | None) -> None:
    """Table, files and plots.

    Raises:
        ConfigError: a folder does not exist, or no run is in it.
        OutputError: the files cannot be written.
    """
    try:
        rows = collect(folders)
    except OSError as error:
        raise OutputError(f"{error.filename} could not be read: {error.strerror}") from error
    print_table(rows)
    folder = open_folder(out or Path(commonpath([each.absolute() for each in folders])))
    from klotski.report.plots import draw_plots  # here, so that a misspelt folder is refused at once

    files = write_rows(rows, folder) + draw_plots(rows, folder)
    print(f"files     {folder}: {', '.join(file.name for file in files)}")
