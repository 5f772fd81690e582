"""`make bench-monitor`: what a monitor costs the run that it looks at, and how soon it is there.

    python -m tests.benchmarks.monitor [--pairs 8] [--visits 16] [--model many-small] [--starts 5]

Runs of a model that is larger than its memory (`make bench-models`), by pairs: one alone, and one with the monitor
attached, in a real terminal of 160 columns and 50 lines that is read as one over ssh would be. Which of a pair comes
first alternates, because machines are shared. The monitor of the first pair shows the first panel, that of the second
the second, and so on.

Single runs differ by more than a monitor costs. So it comes and goes beside one long run, too, and the sweeps with it
are compared with those before and behind.

Prints a table, and writes a JSON line for each row to `outputs/bench-monitor.jsonl`:

- `sweeps`: of the long run, the time of the sweeps without a monitor by that of their neighbours with one: the median
  of all such ratios, its standard error, and `cost`, by which it is less than one; `in_detail`: the share of sweeps
  that were written operation by operation, which is when a monitor has most to read.
- `throughput`: output tokens a second without and with a monitor, medians; the ratio within each pair, its median and
  its range; `cost`, by which the median ratio is less than one. `--model tiny` is the worst case, and one that
  nobody has: all cores are busy all the time, with thousands of operations a second, each of which the monitor reads.
- `panel`: for each, the seconds of a core that the monitor takes in a second of the run, while it shows that panel;
  and without a run that goes on, on one that has ended.
- `start`: seconds from the command to its first whole picture: alone, and beside the runs.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from monitor.panels import PANELS
from tests.benchmarks.models import MODELS, folder_of, make
from tests.benchmarks.runs import BUDGET, OUTPUTS, KilledError, lengths, metrics_in
from tests.watching import Watcher, watching

RUN = OUTPUTS / "bench" / "watched"
WHOLE = ("Overview", "tokens/s", "Quit")  # what is drawn when the first picture is whole
VISIT = 6  # sweeps with a monitor, and then as many without
IDLE = 3.0  # seconds for which each panel of a run that has ended is looked at

Figures = dict[str, float]


class Sweeps:
    """The seconds of each sweep that a run has told of."""

    def __init__(self, run: subprocess.Popen[bytes]) -> None:
        self._run = run
        self._events = (RUN / "events.jsonl").open("rb")
        self._line = b""
        self._seconds: list[float] = []
        self._whole = 0  # of these, those that are written operation by operation: what a monitor reads is most then
        self._is_whole = False

    @property
    def whole(self) -> float:
        """The share of sweeps that are written operation by operation."""
        return self._whole / max(1, len(self._seconds))

    def next(self, count: int) -> list[float]:
        """The next sweeps that begin, when they have ended."""
        self._read()
        first = len(self._seconds) + 1
        while len(self._seconds) < first + count:
            if self._run.poll() is not None:
                raise KilledError("the run ended before all had been measured")
            time.sleep(0.25)
            self._read()
        return self._seconds[first:]

    def _read(self) -> None:
        *lines, self._line = (self._line + self._events.read()).split(b"\n")
        for line in lines:
            if line.startswith(b'{"event":"sweep"'):
                sweep = json.loads(line)
                self._seconds.append(sweep["end"] - sweep["begin"])
                self._whole += self._is_whole
                self._is_whole = False
            self._is_whole |= line.startswith(b'{"event":"span",')


def come_and_go(chosen: argparse.Namespace) -> dict[str, Any]:
    """The row of sweeps."""
    ratios = []
    with begin(chosen, outputs=(2 * chosen.visits + 1) * (VISIT + 3)) as run:
        wait_for(RUN / "events.jsonl", run)
        sweeps = Sweeps(run)
        sweeps.next(1)  # prompts
        before = sweeps.next(VISIT)
        for visit in range(chosen.visits):
            with watching(RUN) as monitor:
                monitor.until_drawn(*WHOLE)
                monitor.press(keys()[visit % len(PANELS)])
                beside = sweeps.next(VISIT)
            behind = sweeps.next(VISIT)
            ratios.append((median(before) + median(behind)) / 2 / median(beside))
            before = behind
            print(f"visit {visit + 1} of {chosen.visits}: {ratios[-1]:.3f}", file=sys.stderr, flush=True)
        run.kill()
    # Of a median of numbers that are about normally distributed.
    error = 1.25 * stdev(ratios) / len(ratios) ** 0.5
    found = {"ratio": median(ratios), "error": error, "cost": 1 - median(ratios), "in_detail": sweeps.whole}
    return {"row": "sweeps"} | found | {"all": ratios}


def alone(chosen: argparse.Namespace) -> Figures:
    """A run that nobody looks at."""
    with begin(chosen) as run:
        return finish(run)


def watched(chosen: argparse.Namespace, key: str) -> Figures:
    """A run with a monitor that shows the panel on this key."""
    with begin(chosen) as run:
        wait_for(RUN / "run.json", run)
        with watching(RUN) as monitor:
            start = monitor.until_drawn(*WHOLE)
            monitor.press(key)
            wait_for(RUN / "events.jsonl", run)
            taken, began = monitor.cpu_seconds, time.monotonic()
            figures = finish(run)
            share = (monitor.cpu_seconds - taken) / (time.monotonic() - began)
            return figures | {"start": start, "share": share, "memory": monitor.process.memory_info().rss}


def begin(chosen: argparse.Namespace, outputs: int | None = None) -> subprocess.Popen[bytes]:
    """Start a run into an empty folder; `outputs`: tokens that each request is given, if not the usual ones."""
    shutil.rmtree(RUN, ignore_errors=True)
    model = ["model=tiny", *lengths(192, 32, outputs or 64)]
    if chosen.model != "tiny":
        path = f"model.path={folder_of(chosen.model)}"
        model = ["model=custom", path, f"hw.device_memory={BUDGET}", *lengths(64, 32, outputs or 8)]
    command = [sys.executable, "-m", "klotski", *model, "workload=synthetic", "history=none", f"hydra.run.dir={RUN}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(run: subprocess.Popen[bytes]) -> Figures:
    """What a run came to, when it has ended."""
    if run.wait():
        raise KilledError(f"status {run.returncode}")
    metrics = metrics_in(RUN)
    return {"tokens_per_second": metrics["output_tokens_per_second"], "seconds": metrics["elapsed_time"]}


def wait_for(file: Path, run: subprocess.Popen[bytes]) -> None:
    """Until a run has written something to a file."""
    while not (file.exists() and file.stat().st_size):
        if run.poll() is not None:
            raise KilledError(f"it ended before it wrote {file.name}")
        time.sleep(0.01)


def idle(monitor: Watcher) -> Iterator[float]:
    """The share of a core that each panel takes when nothing happens any more."""
    for key in keys():
        monitor.press(key)
        taken, began = monitor.cpu_seconds, time.monotonic()
        time.sleep(IDLE)
        yield (monitor.cpu_seconds - taken) / (time.monotonic() - began)


def keys() -> list[str]:
    """Of the panels, in order."""
    return [str(number) for number in range(1, len(PANELS) + 1)]


def measure(chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All rows."""
    if chosen.visits:
        yield come_and_go(chosen)
    if not chosen.pairs:
        return
    without: list[Figures] = []
    beside: list[Figures] = []
    by_panel: dict[str, list[float]] = defaultdict(list)
    for pair in range(chosen.pairs):
        key = keys()[pair % len(PANELS)]
        if pair % 2:
            beside.append(watched(chosen, key))
        without.append(alone(chosen))
        if not pair % 2:
            beside.append(watched(chosen, key))
        by_panel[key].append(beside[-1]["share"])
        print(f"{pair + 1} of {chosen.pairs}: {json.dumps([without[-1], beside[-1]])}", file=sys.stderr, flush=True)
    yield throughput(without, beside)
    starts = []
    for _ in range(chosen.starts):
        with watching(RUN) as monitor:
            starts.append(monitor.until_drawn(*WHOLE))
    with watching(RUN) as monitor:
        monitor.until_drawn(*WHOLE)
        time.sleep(IDLE)  # until it has read the whole run
        ended = list(idle(monitor))
    for key, name, share in zip(keys(), PANELS, ended, strict=True):
        yield {"row": "panel", "panel": name, "ended": share, "running": median(by_panel.get(key) or [float("nan")])}
    both = {"alone": starts, "beside_a_run": [each["start"] for each in beside]}
    yield {"row": "start"} | {name: median(each) for name, each in both.items()} | {"all": both}


def throughput(without: list[Figures], beside: list[Figures]) -> dict[str, Any]:
    """Runs without and with a monitor."""
    name = "tokens_per_second"
    ratios = [with_one[name] / one[name] for one, with_one in zip(without, beside, strict=True)]
    return {
        "row": "throughput",
        "pairs": len(ratios),
        "without": median(each[name] for each in without),
        "with": median(each[name] for each in beside),
        "ratio": median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "cost": 1 - median(ratios),
        "share": median(each["share"] for each in beside),
        "memory": max(each["memory"] for each in beside),
        "all": {"without": without, "with": beside},
    }


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    table = Table("row", "figures")
    for row in rows:
        figures = {key: value for key, value in row.items() if isinstance(value, int | float)}
        name = f"{row['row']} {row.get('panel', '')}"
        table.add_row(name, "  ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    Console(width=120).print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--visits", type=int, default=16)
    parser.add_argument("--model", default="many-small", choices=["tiny", *MODELS])
    parser.add_argument("--starts", type=int, default=5)
    options = parser.parse_args()
    if options.model != "tiny":
        make(options.model, folder_of(options.model))
    results = list(measure(options))
    with (OUTPUTS / "bench-monitor.jsonl").open("a") as lines:
        lines.writelines(json.dumps(result) + "\n" for result in results)
    show(results)
