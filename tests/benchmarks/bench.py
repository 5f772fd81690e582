"""`make bench`: out of core at the machine's limit, measured.

    python -m tests.benchmarks.bench [ROW...] [--repetitions 3] [--models few-large many-small] [--rival-steps N]

Prints a table of medians, and one JSON line for each row to `outputs/bench.jsonl`. Repetitions
alternate over models and rivals, because machines are shared; every run is a process of its own
under a hard limit of 3 GiB on all of its memory, page cache included, from a cold cache.

What is read. Both checkpoints are about twice the limit. Ours reads, past the page cache, each
block that does not stay once for each sweep: with random routers and a hundred tokens or more,
every expert of every layer. Accelerate reads every layer that is not resident once for each step of
its one batch.

What is computed. The same for both: 2 operations for each weight that a token meets.

What the physics allows. Decoding B sequences takes at least max(bytes that stream / disk's rate, B *
operations / matrix product's rate) for each token of all of them; at 2 GB/s and 400 GFLOP/s, 5 GB
against 1.6 GFLOP a token, the two meet at about 650 sequences. A prefill of more than that many tokens
is bound by arithmetic. One sequence at a time, a token costs all those bytes: sharing is the whole gain.

The rival's one batch of 768 on the model of few large experts reached 63 to 65 output tokens a second here,
half of what 403 GFLOP/s allow (130): nobody can be twice as fast there. On the model of many small ones it
reached 102 to 111; arithmetic allows 400, and the disk, at 1.5 to 1.8 GB/s and with the KV cache of some 1200
sequences beside it, 300.

What this machine of two cores cannot show, reasoned through:

- Several NVMe drives (4 x 7 GB/s). A sweep of 5 GB would take 0.2 s of reading, for which one thread
  with requests of 16 MB is too few: two or four of them, each on a share of the requests, need no other
  change, since a block's requests are independent. The arithmetic then binds from 70 sequences on, so
  n and KV memory may shrink, and the time of the interpreter for each operation (0.1 ms, 640 small
  experts: 64 ms of the 200) is what has to go: several small experts in one operation, gathered at once.
- 64 cores (say 10 TFLOP/s in bf16, 200 GB/s of memory). Arithmetic for 650 sequences takes 0.1 s, so the
  disk binds again, until KV cache for 16 000 sequences fits. In between memory's own bandwidth binds:
  a streamed byte crosses it twice (arrival, product), which is 1 % at 2 GB/s and 28 % at 28 GB/s. The
  coroutines all run on one core: with 256 batches of 64, a turn of 1 ms for each batch and layer is
  2 s of a sweep, ten times the arithmetic. Larger batches, or one attention for the whole group over a
  shared cache, would be the change to make.
"""

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from klotski.weights.requests import REQUEST
from tests.benchmarks.accelerate_baseline import PREPARED_FILE
from tests.benchmarks.models import folder_of
from tests.benchmarks.runs import OUTPUTS, KilledError, klotski, lengths, limited, options, read_options

RIVAL_SETTINGS = {"GOMP_SPINCOUNT": "50000", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}  # see accelerate_baseline

Figures = dict[str, float]


def accelerate(model: str, batch_size: int, steps: int | None) -> dict[str, Any]:
    """What the rival's process says of one batch of 64 tokens in and 64 out."""
    program, prepared = "tests.benchmarks.accelerate_baseline", OUTPUTS / "bench-accelerate" / model
    if not (prepared / PREPARED_FILE).exists():
        command = [sys.executable, "-m", program, "prepare", "--model", str(folder_of(model))]
        command += ["--prepared", str(prepared)]
        subprocess.run(command, check=True)
    arguments = ["run", "--prepared", str(prepared), "--batch-size", str(batch_size)]
    arguments += ["--input-tokens", "64", "--output-tokens", "64", *(["--steps", str(steps)] if steps else [])]
    said = limited("-m", program, *arguments, variables=RIVAL_SETTINGS)
    result: dict[str, Any] = json.loads(said.splitlines()[-1])
    return result


def fio(model: str) -> float:
    """Bytes a second that fio reads of a checkpoint, in requests as large as ours, past the page cache."""
    shard = max(folder_of(model).glob("*.safetensors"), key=lambda file: file.stat().st_size)
    settings = {"name": "read", "filename": shard, "rw": "read", "bs": REQUEST, "direct": 1, "ioengine": "psync"}
    settings |= {"runtime": 2, "time_based": 1, "output-format": "json"}
    arguments = [f"--{key}={value}" for key, value in settings.items()]
    said = subprocess.run(["fio", *arguments], capture_output=True, text=True, check=True).stdout
    rate: float = json.loads(said)["jobs"][0]["read"]["bw_bytes"]
    return rate


def decode(model: str, chosen: argparse.Namespace) -> Figures:
    """64 in, 64 out, as planned, against Accelerate at its best: nearness to the bound, and what the disk gave."""
    before = fio(model)
    ours = klotski(model, *lengths(REQUESTS[model], 64, 64))
    rate = median([before, fio(model)])
    disk = {
        "lane_to_fio": ours["bytes_moved"]["disk"] / ours["lane_busy_seconds"]["disk"] / rate,
        "fio": rate,
        "bytes_to_plan": ours["bytes_per_sweep"]["disk"] / ours["plan"]["streamed_bytes"],
    }
    return versus(ours, accelerate(model, BEST_BATCH[model], chosen.rival_steps)) | disk


def prefill(model: str, _: argparse.Namespace) -> Figures:
    """512 in, 8 out: the prefill's share of the matrix product's rate."""
    return common(klotski(model, *lengths(64, 512, 8)))


def equal(model: str, chosen: argparse.Namespace) -> Figures:
    """Batches of 16, ours with n = 8, against Accelerate's one."""
    ours = klotski(model, *lengths(128, 64, 64), "pipeline.batch_size=16", "pipeline.n_batches=8")
    return versus(ours, accelerate(model, 16, chosen.rival_steps))


def scale(model: str, _: argparse.Namespace) -> Figures:
    """Four times the requests, in groups of the same size.

    Batches begin one after the other, so that a workload pays once for a beginning and an end in which
    not all are at work. It has to be many groups long for that not to show: 192 of these requests took
    36 seconds on the model of few large experts, and 768 only 3.3 times as long.
    """
    group = ["pipeline.batch_size=16", "pipeline.n_batches=4"]
    one, four = (klotski(model, *lengths(1024 * times, 16, 4), *group) for times in (1, 4))
    return {
        "seconds": one["elapsed_time"],
        "seconds_of_four": four["elapsed_time"],
        "ratio": four["elapsed_time"] / one["elapsed_time"] / 4,
        "memory_ratio": four["peak_memory"]["process"] / one["peak_memory"]["process"],
    }


def telemetry(model: str, _: argparse.Namespace) -> Figures:
    """With events and without; on, off, off, on, so that a machine that gets slower or faster favours neither."""
    workload = [*lengths(64, 32, 8), "pipeline.batch_size=16", "pipeline.n_batches=4"]
    seconds = {"true": 0.0, "false": 0.0}
    for events in ("true", "false", "false", "true"):
        seconds[events] += klotski(model, *workload, f"events={events}")["elapsed_time"]
    return {"seconds": seconds["true"] / 2, "cost": seconds["true"] / seconds["false"] - 1}


def random_workloads(model: str, chosen: argparse.Namespace) -> Figures:
    """Workloads and budgets at random: none may be killed, and no peak may be above its budget."""
    rng = random.Random(f"{model} {chosen.seed}")
    peaks, refused = [], 0
    for _ in range(chosen.workloads):
        budget = rng.randrange(900, 2950)
        workload = lengths(rng.randrange(1, 97), rng.randrange(1, 300), rng.randrange(1, 7))
        try:
            metrics = klotski(model, *workload, budget=f"{budget}MiB")
            peaks.append(metrics["peak_memory"]["process"] / (budget << 20))
            print(f"{workload} within {budget} MiB: {peaks[-1]:.3f} of it", file=sys.stderr, flush=True)
        except KilledError as error:
            if "is too small" not in str(error):
                raise
            refused += 1
    return {"ran": len(peaks), "refused": refused, "largest_peak": max(peaks)}


def common(metrics: dict[str, Any]) -> Figures:
    """The figures of a run of ours that every row is interested in."""
    return {
        "seconds": metrics["elapsed_time"],
        "tokens_per_second": metrics["output_tokens_per_second"],
        "efficiency": metrics["bound"]["efficiency"],
        "prefill_efficiency": metrics["prefill_efficiency"],
        "disk_rate": metrics["rates"]["disk"],
        "product_rate": metrics["rates"]["compute"],
        "peak": metrics["peak_memory"]["process"],
        "n": metrics["plan"]["n_batches"],
        "batch_size": metrics["plan"]["batch_size"],
    }


def versus(ours: dict[str, Any], rival: dict[str, Any]) -> Figures:
    """Both, and the ratio."""
    return common(ours) | {
        "rival": rival["output_tokens_per_second"],
        "rival_batch_size": rival["batch_size"],
        "rival_step_seconds": rival["step_seconds"],
        "rival_prefill_seconds": rival["prefill_seconds"],
        "rival_tokens": rival["steps"],
        "ratio": ours["output_tokens_per_second"] / rival["output_tokens_per_second"],
    }


BEST_BATCH = {"few-large": 768, "many-small": 1024}  # of the rival; more do not fit, or take longer for each
REQUESTS = {"few-large": 1024, "many-small": 2048}
ROWS: dict[str, Callable[[str, argparse.Namespace], Figures]] = {
    "decode": decode,
    "prefill": prefill,
    "equal": equal,
    "scale": scale,
    "telemetry": telemetry,
    "random": random_workloads,
}


def measure(chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All rows: the median of each figure, and its range."""
    found: dict[tuple[str, str], list[Figures]] = {}
    for repetition in range(chosen.repetitions):
        for row in chosen.rows or ROWS:
            for model in chosen.models:
                figures = ROWS[row](model, chosen)
                found.setdefault((row, model), []).append(figures)
                print(f"{repetition + 1} {row} {model}: {json.dumps(figures)}", file=sys.stderr, flush=True)
    for (row, model), repetitions in found.items():
        medians = {key: median(each[key] for each in repetitions) for key in repetitions[0]}
        yield {"row": row, "model": model, "repetitions": len(repetitions), **medians, "all": repetitions}


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    table = Table("row", "model", "figures")
    for row in rows:
        figures = {key: value for key, value in row.items() if isinstance(value, int | float)}
        table.add_row(row["row"], row["model"], "  ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    Console().print(table)


if __name__ == "__main__":
    parser = options(__doc__, repetitions=3)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []])
    parser.add_argument("--rival-steps", type=int, help="output tokens of the rival; the others like these")
    parser.add_argument("--workloads", type=int, default=10, help="random workloads for each model and repetition")
    parser.add_argument("--seed", type=int, default=0)
    results = list(measure(read_options(parser)))
    with (OUTPUTS / "bench.jsonl").open("a") as lines:
        lines.writelines(json.dumps(result) + "\n" for result in results)
    show(results)
