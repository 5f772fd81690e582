"""The command `klotski-report`: the table, the files and the plots of runs that are there already."""

import argparse
import sys
from pathlib import Path

from klotski.errors import KlotskiError
from klotski.report.making import make_report

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
    try:
        make_report(arguments.folders, arguments.out)
    except KlotskiError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
