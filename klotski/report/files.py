"""The rows as files, for a spreadsheet and for a program."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from klotski.errors import OutputError
from klotski.report.rows import Row
from klotski.report.runs import is_run

__all__ = ["open_folder", "write_rows"]


def open_folder(folder: Path) -> Path:
    """The folder for a report on what is in a folder, made if need be.

    A run has a `results.jsonl` of its own: a report on it lies in a folder `report` inside.

    Raises:
        OutputError: it cannot be made.
    """
    if is_run(folder):
        folder = folder / "report"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} could not be made: {error.strerror}") from error
    return folder


def write_rows(rows: Sequence[Row], folder: Path) -> list[Path]:
    """`results.csv` and `results.jsonl`: one row a run, under the same names; empty or null where a run says nothing.

    Raises:
        OutputError: they cannot be written.
    """
    flat = [row.flat() for row in rows]
    table, lines = folder / "results.csv", folder / "results.jsonl"
    try:
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(flat[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(flat)
        lines.write_text("".join(json.dumps(row) + "\n" for row in flat))
    except OSError as error:
        raise OutputError(f"{error.filename or folder} could not be written: {error.strerror}") from error
    return [table, lines]
