"""Predictions beside what was published for the same model, machine, strategy, n and batch size.

Runs on `hw=published/...` have the habits of the implementation that was published; those on the machine itself have
ours, and say what is to be reached.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from math import exp, log
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from klotski.assets import PUBLISHED
from klotski.report.rows import Row

__all__ = ["Comparison", "compare", "print_comparison", "write_comparison"]

OF_THE_PUBLISHED = "_published"  # how the name of a machine ends, with the habits of what was published
TOKENS = {"workload.input_tokens": 512, "workload.output_tokens": 32}
RATE = "output_tokens_per_second"


class Key(NamedTuple):
    """What was run."""

    model: str
    hw: str
    pipeline: str
    n_batches: int
    batch_size: int


class Comparison(NamedTuple):
    """Tokens a second: published, predicted with the habits of what was published, and with ours."""

    source: str
    key: Key
    published: float
    theirs: float | None
    ours: float | None


def compare(rows: Sequence[Row]) -> list[Comparison]:
    """What was published of these runs, in the figure or table that they cover best; nothing of others."""
    theirs: dict[Key, float] = {}
    ours: dict[Key, float] = {}
    for row in rows:
        rate = row.figures[RATE]
        if row.is_ok and row.figures["mode"] == "predicted" and isinstance(rate, int | float) and has_lengths(row):
            key = key_of(row)
            (theirs if key.hw.endswith(OF_THE_PUBLISHED) else ours)[
                key._replace(hw=key.hw.removesuffix(OF_THE_PUBLISHED))
            ] = rate
    known = list(published())
    of_source = Counter(source for source, _, _ in known)
    covered = Counter(source for source, key, _ in known if key in theirs or key in ours)
    if not covered:
        return []
    best = max(covered, key=lambda source: covered[source] / of_source[source])
    return [
        Comparison(source, key, rate, theirs.get(key), ours.get(key))
        for source, key, rate in known
        if source == best and (key in theirs or key in ours)
    ]


def published(file: Path = PUBLISHED) -> Iterator[tuple[str, Key, float]]:
    """Where a figure stands, what was run, and tokens a second."""
    with file.open(newline="") as lines:
        for line in csv.DictReader(lines):
            key = Key(line["model"], line["hw"], line["pipeline"], int(line["n_batches"]), int(line["batch_size"]))
            yield line["source"], key, float(line["tokens_per_second"])


def has_lengths(row: Row) -> bool:
    """Whether prompts and outputs are as long as they were."""
    return all(row.run.config.get(key) == tokens for key, tokens in TOKENS.items())


def key_of(row: Row) -> Key:
    """What was run."""
    model, hw, pipeline = (str(row.run.config.get(f"{group}.name")) for group in ("model", "hw", "pipeline"))
    n, batch_size = (int(row.figures[f"plan.{name}"] or 0) for name in ("n_batches", "batch_size"))
    return Key(model, hw, pipeline, n, batch_size)


def print_comparison(comparisons: Sequence[Comparison]) -> None:
    """A line for each figure, and how far all are off in the geometric mean."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("published in", *Key._fields):
        table.add_column(name)
    for name in ("published", "its habits, predicted", "of published", "ours, predicted", "of published"):
        table.add_column(name, justify="right")
    for each in comparisons:
        predicted = (write(rate, each.published) for rate in (each.theirs, each.ours))
        figures = [f"{each.published:.3g}", *(cell for cells in predicted for cell in cells)]
        table.add_row(each.source, *map(str, each.key), *figures)
    console = Console(width=200, soft_wrap=True, highlight=False, markup=False, emoji=False)
    console.print(table)
    ratios = [each.theirs / each.published for each in comparisons if each.theirs]
    if ratios:
        off = exp(mean(abs(log(ratio)) for ratio in ratios))
        console.print(f"its habits: {len(ratios)} predictions, off by {off:.2f}x in the geometric mean")
    ratios = [each.ours / each.published for each in comparisons if each.ours]
    if ratios:
        gain = exp(mean(map(log, ratios)))
        console.print(f"ours: {len(ratios)} predictions, {gain:.2f}x what was published in the geometric mean")


def write(rate: float | None, of: float) -> tuple[str, str]:
    """A rate, and what it is of another."""
    return ("", "") if rate is None else (f"{rate:.3g}", f"{rate / of:.2f}x")


def write_comparison(comparisons: Sequence[Comparison], folder: Path) -> list[Path]:
    """`published.csv`, with the same lines."""
    file = folder / "published.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["source", *Key._fields, "published", "predicted_with_its_habits", "predicted_with_ours"])
        writer.writerows([each.source, *each.key, each.published, each.theirs, each.ours] for each in comparisons)
    return [file]
