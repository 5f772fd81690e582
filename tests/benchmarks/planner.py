"""`make bench-planner`: what the planner chooses, against every other choice, measured.

    python -m tests.benchmarks.planner [--models few-large many-small] [--budgets 2950MiB 2000MiB]
        [--n 1 2 4 8] [--sizes 8 16 32 64] [--requests 64] [--repetitions 1] [--patience 1.2]

One workload for all: 64 requests of 64 tokens in and 8 out, under a hard limit of 3 GiB, from a cold cache, as
in `bench`. For each model and budget the planner's own run comes first, then the grid of n and batch size; all
else is planned as ever, so that each cell is the best that its n and batch size allow. A cell whose last batch
would be empty is the same as one with a smaller n, and is left out. Nothing is learned from earlier runs.

A cell that has taken 1.2 times as long as the planner's own run, from the start of the process to its end, is
stopped: it cannot be the best. Without that, most of the hours would go to the smallest groups.

Each run is written to `outputs/bench-planner.jsonl` as it ends, and is not repeated if it lies there already: what
was interrupted goes on. Prints a table, and one JSON line for each row: `share` is the throughput that it reached,
of the best row's with the same model and budget.
"""

import argparse
import json
import time
from collections.abc import Iterator
from functools import partial
from itertools import product
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from tests.benchmarks.ledger import Made, make_all
from tests.benchmarks.runs import OUTPUTS, KilledError, SlowError, klotski, lengths, options, read_options

CELLS = OUTPUTS / "bench-planner.jsonl"
PLANNED = (0, 0)  # n and batch size of the planner's own run
TOKENS = (64, 8)  # in and out


class Cell(NamedTuple):
    """One run to be made."""

    model: str
    budget: str
    requests: int
    n: int
    batch_size: int
    repetition: int


def cells(chosen: argparse.Namespace) -> Iterator[Cell]:
    """Repetitions last, and models in turn, because machines are shared; large groups first."""
    grid = sorted(product(chosen.n, chosen.sizes), key=lambda pair: -pair[0] * pair[1])
    different = [(n, size) for n, size in grid if n == 1 or (n - 1) * size < chosen.requests]
    for repetition in range(chosen.repetitions):
        for (n, size), budget, model in product([PLANNED, *different], chosen.budgets, chosen.models):
            yield Cell(model, budget, chosen.requests, n, size, repetition)


def run(cell: Cell, made: Made, patience: float) -> dict[str, Any]:
    """What came of it; `left_out` says why nothing did."""
    choice = [f"pipeline.n_batches={cell.n}", f"pipeline.batch_size={cell.batch_size}"] if cell.n else []
    planned = made.get(cell._replace(n=PLANNED[0], batch_size=PLANNED[1]))
    limit = patience * planned["wall_seconds"] if planned else None
    begin = time.monotonic()
    try:
        metrics = klotski(cell.model, *lengths(cell.requests, *TOKENS), *choice, budget=cell.budget, patience=limit)
    except SlowError as error:
        return {"left_out": str(error)}
    except KilledError as error:
        if "is too small" not in str(error):
            raise
        return {"left_out": "the budget is too small"}
    plan = metrics["plan"]
    return {
        "left_out": None,
        "wall_seconds": time.monotonic() - begin,
        "tokens_per_second": metrics["output_tokens_per_second"],
        "predicted": plan["predicted_output_tokens_per_second"],
        "efficiency": metrics["bound"]["efficiency"],
        "disk_rate": metrics["rates"]["disk"],
        "product_rate": metrics["rates"]["compute"],
        "as_planned": [plan[name] for name in ("n_batches", "batch_size", "prefill_tokens", "expert_slots")],
    }


def rows(results: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """For each model and budget the medians of each choice, best first, and its share of the best.

    The planner's own run and the cell that came to the same plan are runs of one choice.
    """
    groups: dict[tuple[str, str], dict[tuple[int, ...], list[dict[str, Any]]]] = {}
    for each in results:
        if not each["left_out"]:
            choices = groups.setdefault((each["model"], each["budget"]), {})
            choices.setdefault(tuple(each["as_planned"]), []).append(each)
    for (model, budget), choices in groups.items():
        rates = {choice: median(each["tokens_per_second"] for each in runs) for choice, runs in choices.items()}
        for choice in sorted(rates, key=rates.__getitem__, reverse=True):
            runs = choices[choice]
            yield {
                "model": model,
                "budget": budget,
                "chosen_by": "planner" if any((each["n"], each["batch_size"]) == PLANNED for each in runs) else "grid",
                "as_planned": choice,
                "runs": len(runs),
                "tokens_per_second": rates[choice],
                "predicted": runs[0]["predicted"],
                "efficiency": median(each["efficiency"] for each in runs),
                "share": rates[choice] / max(rates.values()),
            }


def show(found: list[dict[str, Any]]) -> None:
    """The table, and the JSON lines."""
    table = Table("model", "budget", "chosen by", "n", "size", "runs", "tokens/s", "predicted", "efficiency", "share")
    for row in found:
        n, size, *_ = row["as_planned"]
        rates = f"{row['tokens_per_second']:.1f}", f"{row['predicted']:.1f}"
        shares = f"{row['efficiency']:.2f}", f"{row['share']:.1%}"
        table.add_row(
            row["model"], row["budget"], row["chosen_by"], f"{n}", f"{size}", f"{row['runs']}", *rates, *shares
        )
    Console(stderr=True, width=120).print(table)
    for row in found:
        print(json.dumps(row))


if __name__ == "__main__":
    parser = options(__doc__, repetitions=1)
    parser.add_argument("--budgets", nargs="*", default=["2950MiB", "2000MiB"])
    parser.add_argument("--n", nargs="*", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--sizes", nargs="*", type=int, default=[8, 16, 32, 64], help="of batches")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--patience", type=float, default=1.2, help="seconds for a cell, in those of the planner's run")
    chosen = read_options(parser)
    show(list(rows(make_all(CELLS, cells(chosen), partial(run, patience=chosen.patience)))))
