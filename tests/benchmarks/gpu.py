"""What a GPU reaches: ours at the paper's workload and at MoE-Gen's, Accelerate beside it, and the machine's own rates.

    python -m tests.benchmarks.gpu [--rehearse] [--no-accelerate]

Mixtral-8x7B in bfloat16 with weights that are made up, in pinned CPU memory, all in one process: memory is taken,
filled and pinned once, and all runs stream from it and keep keys and values in it.

- bare: copies and products without us.
- 512 tokens in and 32 out with n = 15, within 24 GB and 80 GB of the GPU's memory. Where CPU memory has no room for the
  keys and values of 15 batches beside the weights, n is as many as it has: below them there is no disk here. One of
  these again where the cores compute some of the experts that are missing (`pipeline.misses=cheapest`).
- 512 in and 256 out, of which the first 24 are made: with as many sequences as memory holds, and the planner's n.
- Accelerate with the same weights in the same memory, of which as many layers stay on the GPU as fit, at the same batch
  size, for a few steps: while that memory is pinned, which Accelerate by itself has not, and once it is as any other.
- Each row as the simulator predicts it, by what the first row measured (the first: by what the second did); and
  MoE-Gen's machine, an A5000 with 512 GB, with the overheads of this one.

Prints a table, and appends each row to outputs/bench/gpu.jsonl as it is made. What would take it beyond nine minutes is
left out, and named.

`--rehearse`: the tiny model, and a GPU that is threads (of tests/card), so that the script itself can be tried.
"""

import argparse
import csv
import gc
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

from klotski.app import config_folder
from klotski.assets import PUBLISHED, SHAPES, TINY
from klotski.core import LaneName
from klotski.executors.base import settle_allocator
from klotski.executors.devices import CudaDevice, Device
from klotski.executors.machine import copy_blocks, machine_rates, multiply
from klotski.executors.torch import TorchExecutor
from klotski.lanes import Clock, Lane, SpanSink
from klotski.lanes.cuda import pin
from klotski.model import OpenModel
from klotski.planner import Rates
from klotski.planner.hardware import available_memory
from klotski.units import format_flops, parse_rate
from klotski.weights.dummy import DummyReader, Made
from klotski.weights.layout import BlockLayout
from klotski.weights.memory import allocate, whole_pages
from tests.benchmarks.accelerate_baseline import StepClock
from tests.benchmarks.runs import OUTPUTS, lengths, metrics_in
from tests.card import Card
from tests.engine import run_engine, sample_little

ROWS = 768  # tokens of the bare product
BATCHES = 15  # of the paper's groups
PAPERS_LINK = 25e9  # bytes a second; what its PCIe 4 is taken to give
MOE_GEN = 469.0  # tokens a second that it decodes, of 512/256, on an A5000
STEPS = 3  # of Accelerate; the others are taken to be like them
PIECE = 1 << 26  # numbers
SPARE = 0.1  # of a GPU's budget, that Accelerate is left beside the layers that stay
LEAST_HOST = 98e9  # bytes of CPU memory: weights, and keys and values of 15 batches of 4
MOST_HOST = 170e9  # bytes of CPU memory: weights, and keys and values of 15 batches of 64
OWN = 8e9  # bytes of it for the interpreter, its libraries, and the system's account of pages
TOTAL = 540.0  # seconds
RESERVED = 130.0  # of these, for Accelerate and for predictions
BENCH = OUTPUTS / "bench"
MIXTRAL = SHAPES / "mixtral-8x7b"
LITTLE = ["model=tiny", "hw=rtx4090", "hw.runtime_memory=0"]
SPEEDS = ["hw.link_bandwidth=25GB/s", "hw.product_bandwidth=850GB/s"]
ALIKE = ("prefill_tokens", "expert_slots", "hot_experts")  # of a plan and of its prediction


class Machine(NamedTuple):
    """What rows are made on. `budgets`: bytes of the GPU, small and large; `host`: of CPU memory.

    `assumed`: speeds, for plans of which only the memory counts; `instead`: of those that a card of threads measures,
    and that no machine has. `requests`: of MoE-Gen's workload.
    """

    model: list[str]
    assumed: list[str]
    instead: list[str]
    shape: Path
    budgets: tuple[float, float]
    host: int
    requests: int
    folder: Path


@dataclass(frozen=True)
class Row:
    """A run of ours. `budget`: bytes of the GPU; `group`: n and batch size, or None for the planner's choice.

    `misses`: as `pipeline.misses`.
    """

    name: str
    budget: float
    requests: int
    group: tuple[int, int] | None
    tokens_in: int
    tokens_out: int
    misses: str = "move"

    def settings(self, machine: Machine) -> list[str]:
        """Its overrides."""
        return [
            *machine.model,
            "model.load_format=dummy",
            "workload=synthetic",
            "history=none",
            f"pipeline.misses={self.misses}",
            f"hw.host_memory={machine.host / 1e6:.0f}MB",
            f"hw.device_memory={self.budget / 1e6:.0f}MB",
            *lengths(self.requests, self.tokens_in, self.tokens_out),
            *([f"pipeline.n_batches={self.group[0]}", f"pipeline.batch_size={self.group[1]}"] if self.group else []),
        ]

    @property
    def batch_size(self) -> int | None:
        """Its batch size, if it has been chosen."""
        return self.group[1] if self.group else None


class Arena:
    """A device whose CPU memory is taken, filled and pinned once for all runs; see `executors.Device`.

    Of each run, blocks are at its begin, and all else at its end.
    """

    def __init__(self, device: Device, nbytes: int) -> None:
        self.device = device
        self.place = device.place
        self.has_host_tier = device.has_host_tier
        self.cache_blocking = device.cache_blocking
        self.pages = allocate(whole_pages(nbytes))
        numbers = torch.randn(PIECE, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(torch.bfloat16)
        for piece in torch.split(self.pages.view(torch.bfloat16), PIECE):  # by all cores; the driver has only one
            piece.copy_(numbers[: len(piece)])
        self._unpin = pin(self.pages)
        self.begin()

    @property
    def is_pinned(self) -> bool:
        """Whether copies from it are at the link's speed."""
        return self._unpin is not None

    def unpin(self) -> None:
        """Make it memory as any other."""
        if self._unpin is not None:
            self._unpin()
            self._unpin = None

    def begin(self) -> None:
        """A run begins, and the one before has ended."""
        self._blocks: int | None = None
        self._end = len(self.pages)

    def holds(self, memory: torch.Tensor) -> bool:
        """Whether this is of the memory that was filled."""
        begin = self.pages.data_ptr()
        return begin <= memory.data_ptr() < begin + self.pages.numel()

    def memory(self) -> tuple[int, str] | None:
        """As the device."""
        return self.device.memory()

    def limit(self, nbytes: int, runtime: int) -> None:
        """As the device."""
        self.device.limit(nbytes, runtime)

    def taken(self) -> int | None:
        """As the device."""
        return self.device.taken()

    def lanes(self, clock: Clock) -> Callable[[LaneName, SpanSink], Lane]:
        """As the device."""
        return self.device.lanes(clock)

    def allocate(self, nbytes: int) -> torch.Tensor:
        """As the device."""
        return self.device.allocate(nbytes)

    def allocate_host(self, nbytes: int) -> torch.Tensor:
        """For blocks that stay on the host, which a run asks for first, the begin; then from the end on."""
        if self._blocks is None:
            self._blocks = nbytes
            return self.pages[:nbytes]
        self._end -= whole_pages(nbytes)
        assert self._end >= self._blocks, "a run takes more CPU memory than there is"
        return self.pages[self._end : self._end + nbytes]

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """As the device."""
        self.device.copy(target, source)

    def multiplies_together(self, dtype: torch.dtype) -> bool:
        """As the device."""
        return self.device.multiplies_together(dtype)

    def wait(self) -> None:
        """As the device."""
        self.device.wait()


class FilledReader(DummyReader):
    """Makes up the weights that are not in the arena."""

    def __init__(self, arena: Arena) -> None:
        super().__init__()
        self._arena = arena

    def start(self, layout: BlockLayout, slot: torch.Tensor) -> Made:
        """Fill a slot, unless it is filled."""
        return Made() if self._arena.holds(slot) else super().start(layout, slot)


def ours(row: Row, machine: Machine, arena: Arena) -> dict[str, Any]:
    """The metrics of a run, with its plan."""
    folder = machine.folder / "run"
    shutil.rmtree(folder, ignore_errors=True)
    arena.begin()

    def rates(_: str, opened: OpenModel, __: Device) -> Rates | None:
        """What the GPU reaches, measured once, and with memory of its own: the arena's is filled."""
        return machine_rates(str(machine.folder / "rates"), opened, arena.device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("klotski.executors.torch.machine_rates", rates)
        patch.setattr("klotski.executors.create", lambda config: TorchExecutor(arena))
        patch.setattr("klotski.executors.torch.DummyReader", lambda: FilledReader(arena))
        run_engine(folder, "events=false", *row.settings(machine))
    return metrics_in(folder) | {"plan": json.loads((folder / "plan.json").read_text())}


def planned(row: Row, machine: Machine) -> dict[str, Any]:
    """The plan of a row, by assumed speeds."""
    folder = machine.folder / "plan"
    shutil.rmtree(folder, ignore_errors=True)
    with redirect_stdout(StringIO()):
        run_engine(folder, *row.settings(machine), *machine.assumed, "executor=simulate", "dry_run=true")
    plan: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    return plan


def predict(name: str, machine: Machine, *settings: str) -> dict[str, Any]:
    """The metrics of a run as the simulator predicts it, in a process of its own."""
    folder = machine.folder / "predicted" / name
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "klotski", *settings, "executor=simulate", f"hydra.run.dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return metrics_in(folder)


def accelerate(machine: Machine, arena: Arena, row: Row, place: torch.device) -> dict[str, Any]:
    """Accelerate at a row's batch size, with the same weights in the same memory."""
    assert row.batch_size is not None
    gc.collect()  # what our last run held in circles
    arena.limit(int(row.budget), 0)
    from accelerate import dispatch_model, init_empty_weights
    from accelerate.utils import set_module_tensor_to_device

    with init_empty_weights(include_buffers=False):
        config = AutoConfig.from_pretrained(machine.shape)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, experts_implementation="eager")
    state, begin = {}, 0
    numbers = arena.pages.view(torch.bfloat16)
    for name, parameter in model.named_parameters():
        state[name] = numbers[begin : begin + parameter.numel()].view(parameter.shape)
        begin += parameter.numel()
    layer_bytes = 2 * sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    staying = int(row.budget * (1 - SPARE) / layer_bytes) - 1  # one is on its way
    layers = len(model.model.layers)
    device_map: dict[str, Any] = {f"model.layers.{layer}": "cpu" for layer in range(layers)}
    device_map |= {f"model.layers.{layer}": place for layer in range(max(0, min(staying, layers - 1)))}
    device_map |= dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), place)
    for name in state:
        if next(where for prefix, where in device_map.items() if name.startswith(f"{prefix}.")) != "cpu":
            set_module_tensor_to_device(model, name, place, value=state[name])
    model = dispatch_model(model.eval(), device_map, main_device=place, state_dict=state, force_hooks=True)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    ids = torch.randint(config.vocab_size, (row.batch_size, row.tokens_in)).to(place)
    clock = StepClock()
    arena.wait()
    started = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=STEPS,
            do_sample=False,
            logits_processor=[clock],
        )
    arena.wait()
    ended = time.perf_counter()
    # A step's time is noted before the GPU has done it, so that only all of them together can be told.
    prefill = clock.times[0] - started
    step = (ended - clock.times[0]) / (STEPS - 1)
    return {
        "prefill_seconds": prefill,
        "step_seconds": step,
        "output_tokens_per_second": row.batch_size * row.tokens_out / (prefill + (row.tokens_out - 1) * step),
    }


def ratios(row: Row, theirs: dict[str, Any], made: list[tuple[Row, dict[str, Any]]]) -> dict[str, float]:
    """How many times as fast we are, at the same work within the same memory; and with the cores, if that was made."""
    alike = {row: "ratio", with_cores(row): "ratio_with_cores"}
    return {
        alike[one]: metrics["output_tokens_per_second"] / theirs["output_tokens_per_second"]
        for one, metrics in made
        if one in alike
    }


def published(batch_size: int | None) -> float | None:
    """Tokens a second of the paper's figure 10, on the RTX 3090."""
    with PUBLISHED.open() as file:
        for line in csv.DictReader(file):
            key = line["source"], line["model"], line["hw"], line["pipeline"], line["batch_size"]
            if key == ("figure 10", "mixtral", "rtx3090", "klotski", str(batch_size)):
                return float(line["tokens_per_second"])
    return None


def bare_rates(device: Device) -> dict[str, Any]:
    """What the link and the arithmetic give without us."""
    return {
        "row": "bare",
        "link": copy_blocks(device, inward=True),
        "back": copy_blocks(device, inward=False),
        "flops": 2 * ROWS * multiply(ROWS, torch.bfloat16, device),
    }


def told(row: Row, metrics: dict[str, Any]) -> dict[str, Any]:
    """A row of the table."""
    plan, rates, bound = metrics["plan"], metrics["rates"], metrics["bound"]
    paper = published(plan["batch_size"])
    of_link = metrics["output_tokens_per_second"] / rates[LaneName.LINK]
    return {
        "row": row.name,
        "n": plan["n_batches"],
        "batch": plan["batch_size"],
        "budget": row.budget,
        "seconds": metrics["elapsed_time"],
        "output_tokens_per_second": metrics["output_tokens_per_second"],
        "decode_tokens_per_second": metrics["decode_tokens_per_second"],
        "prefill_seconds": metrics["prefill_seconds"],
        "bound": bound["resource"],
        "efficiency": bound["efficiency"],
        "decode_efficiency": bound["decode_efficiency"],
        "link": rates[LaneName.LINK],
        "to_paper": of_link / (paper / PAPERS_LINK) if paper and row.tokens_out == 32 else None,
        "peak_memory": metrics["peak_memory"],
    }


def rows_of(machine: Machine, *, is_rehearsal: bool) -> list[Row]:
    """What is run, in the order in which it would be missed."""
    small, large = machine.budgets
    if is_rehearsal:
        as_planned = most_of(Row("16/4, planned", large, 40, None, 16, 4), machine)
        first = Row("16/2", small, 30, (BATCHES, 2), 16, 2)
        return [first, as_planned, with_cores(first)]
    paper = [fitting(Row("512/32", small, 0, (BATCHES, size), 512, 32), machine) for size in (4, 16, 64)]
    generation = most_of(Row("512/256, first 24", small, 4000, None, 512, 256), machine)
    beyond = [fitting(Row("512/32", large, 0, (BATCHES, size), 512, 32), machine) for size in (4, 64, 16)]
    return [*paper, replace(generation, tokens_out=24), *beyond, with_cores(paper[1])]


def with_cores(row: Row) -> Row:
    """The same, where the cores compute some of the experts that are missing."""
    return replace(row, name=f"{row.name}, cores", misses="cheapest")


def fitting(row: Row, machine: Machine) -> Row:
    """A row with as many batches, up to its n, as CPU memory holds keys and values of beside the weights."""
    assert row.group is not None
    most, size = row.group
    for n in range(most, 0, -1):
        fewer = replace(row, group=(n, size), requests=n * size)
        if not planned(fewer, machine)["window_places"]:
            return fewer
    raise SystemExit(f"hw.host_memory={machine.host / 1e9:.0f}GB has no room for the weights and one batch of {size}")


def most_of(row: Row, machine: Machine) -> Row:
    """A row with one group of as many sequences as the planner drives at once, if there are more than enough."""
    plan = planned(row, machine)
    group = plan["n_batches"], plan["batch_size"]
    return replace(row, group=group, requests=min(row.requests, group[0] * group[1]))


def predictions(made: list[tuple[Row, dict[str, Any]]], machine: Machine) -> list[dict[str, Any]]:
    """Of each row, by what another one measured; and of MoE-Gen's machine."""

    def again(position: int) -> dict[str, Any]:
        row, metrics = made[position]
        by = machine.folder / "measured" / str(int(position == 0 and len(made) > 1))
        alike = [f"pipeline.{name}={metrics['plan'][name]}" for name in ALIKE]
        settings = [each for each in row.settings(machine) if not each.startswith("hw=")]
        by_measured = ["--config-dir", str(by), "hw=measured", *machine.instead]
        found = predict(str(position), machine, *by_measured, *settings, *alike)
        error = found["elapsed_time"] / metrics["elapsed_time"] - 1
        named = {"row": f"predicted {row.name}", "n": metrics["plan"]["n_batches"], "batch": row.batch_size}
        return named | {"budget": row.budget, "seconds": found["elapsed_time"], "error": error}

    def elsewhere(_: int) -> dict[str, Any]:
        measured = yaml.safe_load((machine.folder / "measured" / "0" / "hw" / "measured.yaml").read_text())
        taken = [f"hw.{key}={measured[key]}" for key in ("batch_overhead", "expert_overhead", "operation_overhead")]
        dense, of_all = (parse_rate(key, measured[key], "FLOP") or 0.0 for key in ("dense_rate", "compute_rate"))
        a5000 = yaml.safe_load((config_folder() / "hw" / "a5000.yaml").read_text())
        theirs = parse_rate("compute_rate", a5000["compute_rate"], "FLOP") or 0.0
        taken.append(f"hw.dense_rate={format_flops(theirs * dense / of_all)}")
        work = ["workload=synthetic", *lengths(machine.requests, 512, 256)]
        found = predict("a5000", machine, "model=mixtral", "hw=a5000", "history=none", *work, *taken)
        decoded = found["decode_tokens_per_second"]
        return {
            "row": "predicted, MoE-Gen's A5000",
            "output_tokens_per_second": found["output_tokens_per_second"],
            "decode_tokens_per_second": decoded,
            "ratio": decoded / MOE_GEN,
        }

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        there = pool.submit(elsewhere, 0)
        return [*pool.map(again, range(len(made))), there.result()]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, on the tiny model")
    parser.add_argument("--no-accelerate", action="store_true")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        if chosen.rehearse:
            stack.enter_context(Card())
            sample_little(stack.enter_context(pytest.MonkeyPatch.context()))
        measure(chosen)


def measure(chosen: argparse.Namespace) -> None:
    """Make the rows, and show them."""
    began = time.monotonic()
    settle_allocator(os.environ)
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU that torch can use; --rehearse tries this on one of threads")
    device = CudaDevice()
    machine = (
        Machine(LITTLE, [], SPEEDS, TINY, (9e6, 12e6), 40_000_000, 20, BENCH / "gpu-rehearsal")
        if chosen.rehearse
        else Machine(["model=mixtral"], ["hw=h200"], [], MIXTRAL, (24e9, 80e9), host_memory(), 4000, BENCH / "gpu")
    )
    shutil.rmtree(machine.folder, ignore_errors=True)
    machine.folder.mkdir(parents=True)
    kept: list[dict[str, Any]] = []
    made: list[tuple[Row, dict[str, Any]]] = []
    with (machine.folder.with_suffix(".jsonl")).open("a") as out:

        def keep(row: dict[str, Any]) -> None:
            kept.append(row)
            out.write(json.dumps(row) + "\n")
            out.flush()
            print(f"{time.monotonic() - began:.0f} s: {json.dumps(row)}", flush=True)

        rows = rows_of(machine, is_rehearsal=chosen.rehearse)
        keep(bare_rates(device))
        arena = Arena(device, machine.host)
        if not arena.is_pinned:
            print("CPU memory could not be pinned, so that copies are slower: see `ulimit -l`", flush=True)
        for row in rows:
            expected = made[-1][1]["elapsed_time"] if made else 0.0
            if time.monotonic() - began + expected + RESERVED > TOTAL:
                print(f"left out, for want of time: {row}", flush=True)
                continue
            metrics = ours(row, machine, arena)
            shutil.copytree(machine.folder / "run" / "hw", machine.folder / "measured" / str(len(made)) / "hw")
            made.append((row, metrics))
            keep(told(row, metrics))
        if not chosen.no_accelerate:
            row, _ = made[min(1, len(made) - 1)]
            # It makes parameters anew of what they are, which tensors of threads are not made for.
            place = torch.device("cpu") if chosen.rehearse else device.place
            for memory in ("pinned", "as it comes"):
                if memory != "pinned":
                    arena.unpin()
                theirs = accelerate(machine, arena, row, place)
                named = {"row": f"Accelerate, {memory}", "batch": row.batch_size, "budget": row.budget}
                keep(named | theirs | ratios(row, theirs, made))
        for predicted in predictions(made, machine):
            keep(predicted)
    show(kept)


def host_memory() -> int:
    """Bytes of CPU memory for weights, keys and values."""
    available, whose = available_memory()
    host = int(min(MOST_HOST, available - OWN))
    if host < LEAST_HOST:
        raise SystemExit(f"{available / 1e9:.0f}GB {whose}: {(LEAST_HOST + OWN) / 1e9:.0f}GB of CPU memory are needed")
    print(f"{host / 1e9:.0f}GB of the {available / 1e9:.0f}GB {whose}", flush=True)
    return host


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    columns = list(dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, dict)))
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(cell(row.get(column)) for column in columns))
    Console(width=300).print(table)


def cell(value: object) -> str:
    """A figure as it is written."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
