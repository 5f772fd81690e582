"""What a GPU reaches: ours at the paper's workload and at MoE-Gen's, Accelerate beside it, and the machine's own rates.

    python -m tests.benchmarks.gpu [--rehearse] [--no-accelerate]

Mixtral-8x7B in bfloat16 with weights that are made up, in pinned CPU memory, all in one process: 93 GB are filled once,
and all runs stream from them. 512 tokens in and 32 out with n = 15, within 24 GB and 80 GB of the GPU's memory; 512 in
and the first 24 of 256 out, with as many sequences as the planner chooses; Accelerate with the same weights in the same
pinned memory, of which as many layers stay on the GPU as fit, at the same batch size, for a few steps; and before all
that, bare copies and products. Prints a table, and appends each row to outputs/bench/gpu.jsonl as it is made.

`--rehearse`: the tiny model, and a GPU that is threads (of tests/card), so that the script itself can be tried.
"""

import argparse
import csv
import gc
import json
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

from klotski.assets import PUBLISHED, SHAPES, TINY
from klotski.core import LaneName
from klotski.executors.devices import CudaDevice, Device
from klotski.executors.machine import copy_blocks, machine_rates, multiply
from klotski.executors.torch import TorchExecutor
from klotski.lanes import Clock, Lane, SpanSink
from klotski.model import OpenModel
from klotski.planner import Rates
from klotski.weights.dummy import DummyReader, Made
from klotski.weights.layout import BlockLayout
from tests.benchmarks.accelerate_baseline import StepClock
from tests.benchmarks.runs import OUTPUTS, lengths, metrics_in
from tests.card import Card
from tests.engine import run_engine

ROWS = 768  # tokens of the bare product
PAPERS_LINK = 25e9  # bytes a second; what its PCIe 4 is taken to give
STEPS = 3  # of Accelerate; the others are taken to be like them
PIECE = 1 << 26  # numbers
SPARE = 0.1  # of a GPU's budget, that Accelerate is left beside the layers that stay


@dataclass(frozen=True)
class Row:
    """A run of ours. `budget`: bytes of the GPU; `batch_size`: None for the planner's choice."""

    name: str
    budget: float
    requests: int
    batch_size: int | None
    tokens_in: int
    tokens_out: int

    def settings(self) -> list[str]:
        """Its overrides."""
        group = [] if self.batch_size is None else [f"pipeline.batch_size={self.batch_size}", "pipeline.n_batches=15"]
        return [
            f"hw.device_memory={self.budget / 1e6:.0f}MB",
            *lengths(self.requests, self.tokens_in, self.tokens_out),
            *group,
        ]


class Arena:
    """A device whose CPU memory for blocks is taken, pinned and filled once for all runs; see `executors.Device`."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self.device = device
        self.place = device.place
        self.has_host_tier = device.has_host_tier
        self.blocks = device.allocate_host(nbytes)
        numbers = torch.randn(PIECE, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(torch.bfloat16)
        for piece in torch.split(self.blocks.view(torch.bfloat16), PIECE):
            piece.copy_(numbers[: len(piece)])
        self._is_given = False

    def begin(self) -> None:
        """A run begins, and the one before has ended."""
        self._is_given = False

    def holds(self, memory: torch.Tensor) -> bool:
        """Whether this is of the memory that was filled."""
        begin = self.blocks.data_ptr()
        return begin <= memory.data_ptr() < begin + self.blocks.numel()

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
        """For the blocks that stay on the host, which a run asks for first, what was filled; then as the device."""
        if self._is_given or nbytes > self.blocks.numel():
            return self.device.allocate_host(nbytes)
        self._is_given = True
        return self.blocks[:nbytes]

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


def ours(row: Row, model: list[str], arena: Arena, folder: Path) -> dict[str, Any]:
    """The metrics of a run."""
    shutil.rmtree(folder, ignore_errors=True)
    arena.begin()

    def rates(_: str, opened: OpenModel, __: Device) -> Rates | None:
        """What the GPU reaches, measured once, and with memory of its own: the arena's is filled."""
        return machine_rates(str(folder.with_name("rates")), opened, arena.device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("klotski.executors.torch.machine_rates", rates)
        patch.setattr("klotski.executors.create", lambda config: TorchExecutor(arena))
        patch.setattr("klotski.executors.torch.DummyReader", lambda: FilledReader(arena))
        run_engine(folder, *model, "workload=synthetic", "history=none", "events=false", *row.settings())
    return metrics_in(folder)


def accelerate(shape: Path, arena: Arena, row: Row, place: torch.device) -> dict[str, Any]:
    """Accelerate at a row's batch size, with the same weights in the same memory."""
    assert row.batch_size is not None
    gc.collect()  # what our last run held in circles
    arena.limit(int(row.budget), 0)
    from accelerate import dispatch_model, init_empty_weights
    from accelerate.utils import set_module_tensor_to_device

    with init_empty_weights(include_buffers=False):
        config = AutoConfig.from_pretrained(shape)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, experts_implementation="eager")
    state, begin = {}, 0
    numbers = arena.blocks.view(torch.bfloat16)
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
    plan = metrics["plan"]
    rates = metrics["rates"]
    paper = published(row.batch_size)
    of_link = metrics["output_tokens_per_second"] / rates[LaneName.LINK]
    return {
        "row": row.name,
        "n": plan.get("n_batches"),
        "batch": row.batch_size or plan.get("batch_size"),
        "budget": row.budget,
        "output_tokens_per_second": metrics["output_tokens_per_second"],
        "decode_tokens_per_second": metrics["decode_tokens_per_second"],
        "prefill_seconds": metrics["prefill_seconds"],
        "bound": metrics["bound"]["resource"],
        "efficiency": metrics["bound"]["efficiency"],
        "link": rates[LaneName.LINK],
        "to_paper": of_link / (paper / PAPERS_LINK) if paper and row.tokens_out == 32 else None,
        "peak_memory": metrics["peak_memory"],
        "predicted": plan.get("predicted_output_tokens_per_second"),
    }


def rows_of(is_rehearsal: bool) -> list[Row]:
    """What is run."""
    if is_rehearsal:
        return [Row("16/4", 9e6, 30, 2, 16, 4), Row("16/4, planned", 12e6, 12, None, 16, 4)]
    small = [Row("512/32", 24e9, 15 * size, size, 512, 32) for size in (4, 16, 64)]
    large = [Row("512/32", 80e9, 15 * size, size, 512, 32) for size in (4, 64)]
    return [*small, *large, Row("512/256, first 24", 24e9, 1200, None, 512, 24)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, on the tiny model")
    parser.add_argument("--no-accelerate", action="store_true")
    chosen = parser.parse_args()
    with Card() if chosen.rehearse else nullcontext():
        measure(chosen)


def measure(chosen: argparse.Namespace) -> None:
    """Make the rows, and show them."""
    began = time.monotonic()
    device = CudaDevice()
    model, shape, host = (
        (["model=tiny", "hw=rtx4090", "hw.runtime_memory=0"], TINY, 40_000_000)
        if chosen.rehearse
        else (["model=mixtral", "hw.host_memory=100GB"], SHAPES / "mixtral-8x7b", 93_500_000_000)
    )
    folder = OUTPUTS / "bench" / ("gpu-rehearsal" if chosen.rehearse else "gpu")
    folder.mkdir(parents=True, exist_ok=True)
    made: list[dict[str, Any]] = []
    with (folder.with_suffix(".jsonl")).open("a") as out:

        def keep(row: dict[str, Any]) -> None:
            made.append(row)
            out.write(json.dumps(row) + "\n")
            out.flush()
            print(f"{time.monotonic() - began:.0f} s: {json.dumps(row)}", flush=True)

        keep(bare_rates(device))
        arena = Arena(device, host)
        for row in rows_of(chosen.rehearse):
            metrics = ours(row, [*model, "model.load_format=dummy"], arena, folder / "run")
            metrics["plan"] = json.loads((folder / "run" / "plan.json").read_text())
            keep(told(row, metrics))
        if not chosen.no_accelerate:
            size = 2 if chosen.rehearse else 16
            paired = next(row for row in rows_of(chosen.rehearse) if row.batch_size == size)
            # Accelerate makes parameters anew of what they are, which tensors of threads are not made for.
            theirs = accelerate(shape, arena, paired, torch.device("cpu") if chosen.rehearse else device.place)
            speed = next(row["output_tokens_per_second"] for row in made if row.get("batch") == size)
            keep(
                {"row": f"Accelerate {paired.name}", "batch": size, "budget": paired.budget, **theirs}
                | {"ratio": speed / theirs["output_tokens_per_second"]}
            )
    show(made)


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
