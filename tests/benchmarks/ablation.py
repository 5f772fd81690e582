"""`make bench-ablation`: what each idea adds, and the rivals' strategies, measured (the paper's table 3).

    python -m tests.benchmarks.ablation [--models few-large many-small] [--repetitions 3] [--n 8]

64 tokens in and 32 out in batches of 16, under a hard limit of 3 GiB, from a cold cache, as in `bench`. All are
configurations of one engine, so that what differs is what a strategy does, not how well its code is written. Those of
many batches get n of them; those of one batch get one, because the others would only repeat it. All else is planned
as ever, so that each is as good as its strategy allows. Nothing is learned from earlier runs.

Repetitions alternate over models and strategies. Each run is written to `outputs/bench-ablation.jsonl` as it ends, and
is not repeated if it lies there already: what was interrupted goes on. Prints a table of medians, and one JSON line
for each row: `gain` is its throughput over that of the row above it, for the steps; `klotski_ahead` is the throughput
of `klotski` over that of the row. `bubble` is the share of the time in which the compute lane waits, in the sweeps that
the cores bound; `disk_busy` the share in which the disk's lane does not, in those that the disk bounds.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from itertools import product
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from tests.benchmarks.ledger import Made, make_all
from tests.benchmarks.runs import OUTPUTS, klotski, lengths, options, read_options

RUNS_MADE = OUTPUTS / "bench-ablation.jsonl"
TOKENS = (64, 32)  # in and out
BATCH_SIZE = 16
STEPS = {  # the names of the strategies, and what each adds to the one before
    "step/one_batch": "the next layer comes while this one computes",
    "step/many_batches": "+ many batches (FlexGen's way: overlap)",
    "step/hot_experts": "+ only hot experts come ahead",
    "klotski": "+ experts in the order of their arrival",
}
RIVALS = {
    "sequential": "Accelerate's way",
    "expert_cache": "MoE-Infinity's way",
    "cpu_experts": "Fiddler's way; a disk computes nothing",
}
OF_ONE_BATCH = {"step/one_batch", *RIVALS}
FIGURES = ("tokens_per_second", "waiting", "bubble", "disk_busy", "sweep_gigabytes", "sweep_seconds", "efficiency")


class Job(NamedTuple):
    """One run to be made."""

    model: str
    strategy: str
    n: int
    repetition: int


def jobs(chosen: argparse.Namespace) -> Iterator[Job]:
    """Repetitions last, because machines are shared."""
    for repetition, model, strategy in product(range(chosen.repetitions), chosen.models, [*STEPS, *RIVALS]):
        yield Job(model, strategy, 1 if strategy in OF_ONE_BATCH else chosen.n, repetition)


def run(job: Job, _: Made) -> dict[str, Any]:
    """What came of it."""
    choice = [f"pipeline={job.strategy}", f"pipeline.n_batches={job.n}", f"pipeline.batch_size={BATCH_SIZE}"]
    metrics = klotski(job.model, *choice, *lengths(job.n * BATCH_SIZE, *TOKENS))
    plan, sweeps = metrics["plan"], metrics["bound"]["sweeps"]
    return {
        "tokens_per_second": metrics["output_tokens_per_second"],
        "waiting": metrics["bubble_fraction"],
        "bubble": sweeps["compute"]["bubble"] if "compute" in sweeps else None,
        "disk_busy": sweeps["disk"]["busy"] if "disk" in sweeps else None,
        "sweep_gigabytes": metrics["bytes_per_sweep"]["disk"] / 1e9,
        "sweep_seconds": metrics["elapsed_time"] / metrics["num_sweeps"],
        "efficiency": metrics["bound"]["efficiency"],
        "bound": metrics["bound"]["resource"],
        "disk_rate": metrics["rates"]["disk"],
        "product_rate": metrics["rates"]["compute"],
        "as_planned": [plan["expert_slots"], plan["hot_experts"], len(plan["residents"])],
    }


def rows(results: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """For each model its steps, then the rivals."""
    for model in dict.fromkeys(each["model"] for each in results):
        before: float | None = None
        of_strategy = {
            strategy: [each for each in results if (each["model"], each["strategy"]) == (model, strategy)]
            for strategy in [*STEPS, *RIVALS]
        }
        ours = median(each["tokens_per_second"] for each in of_strategy["klotski"])
        for strategy, runs in of_strategy.items():
            figures = {figure: middle(each[figure] for each in runs) for figure in FIGURES}
            rate = median(each["tokens_per_second"] for each in runs)
            yield {
                "model": model,
                "strategy": strategy,
                "what": (STEPS | RIVALS)[strategy],
                "n": runs[0]["n"],
                "runs": len(runs),
                **figures,
                "range": [pick(each["tokens_per_second"] for each in runs) for pick in (min, max)],
                "gain": rate / before if before and strategy in STEPS else None,
                "klotski_ahead": ours / rate,
            }
            before = rate


def middle(values: Iterable[float | None]) -> float | None:
    """The median of those that there are."""
    there = [value for value in values if value is not None]
    return median(there) if there else None


def show(found: list[dict[str, Any]]) -> None:
    """The table, and the JSON lines."""
    names = ("tokens/s", "gain", "klotski ahead", "waits", "bubble", "disk", "GB a sweep", "s")
    table = Table("model", "strategy", "what", "n", *names)
    for row in found:
        figures = [
            text(row[key], form)
            for key, form in (
                ("tokens_per_second", "{:.1f}"),
                ("gain", "{:.2f}"),
                ("klotski_ahead", "{:.2f}"),
                ("waiting", "{:.1%}"),
                ("bubble", "{:.1%}"),
                ("disk_busy", "{:.1%}"),
                ("sweep_gigabytes", "{:.2f}"),
                ("sweep_seconds", "{:.2f}"),
            )
        ]
        table.add_row(row["model"], row["strategy"], row["what"], f"{row['n']}", *figures)
    Console(stderr=True, width=150).print(table)
    for row in found:
        print(json.dumps(row))


def text(value: float | None, form: str) -> str:
    """A figure as it is shown."""
    return "" if value is None else form.format(value)


if __name__ == "__main__":
    parser = options(__doc__, repetitions=3)
    parser.add_argument("--n", type=int, default=8, help="batches that share each block's arrival")
    show(list(rows(make_all(RUNS_MADE, jobs(read_options(parser)), run))))
