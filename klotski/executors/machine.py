"""What this machine reaches, measured once and kept: to plan models by that have not been run on it yet.

A run measures more, with its own blocks and shapes; what it learns about its model counts more than this.
"""

import json
import logging
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import date
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from klotski.core import STEP
from klotski.executors.devices import CpuDevice, Device, name_of
from klotski.executors.history import Setup, home_of
from klotski.executors.rates import rate, weights_rate
from klotski.model import ROWS, OpenModel
from klotski.planner import NOMINAL, Rates
from klotski.planner.rates import NOMINAL_GPU
from klotski.weights.memory import allocate
from klotski.weights.reader import Reader

__all__ = ["machine_rates", "setup_of"]

logger = logging.getLogger(__name__)

SECONDS = 0.25  # of each measurement
ENOUGH = 1 << 30  # bytes of weights: a smaller model is planned by nominal rates, before it would be measured
COPIED = 256 << 20  # bytes
LAUNCHES = 100  # with one wait for all
# Launches: some 45 and 5 kernels, and the Python between them. On cores, with matrices that take no time, a turn takes
# as long as 155 small operations, and an expert's 35. That a launch takes twice as long as one of those is assumed.
OF_A_TURN, OF_A_STEP = 100, 20
OF_FEW = {"few": ("product", "compute", STEP), "few-below": ("cores_product", "cores", 1)}
"""Of products of few rows, whose rate follows from them, and from that of products of many; and how few."""
SEQUENCES, HEADS, CONTEXT, WIDTH = 64, 8, 512, 128  # of keys and values, as of Mixtral's
WIDE, DEEP = 2048, 4096  # the sides of an expert's matrix
UNCACHED = 64  # of these, that no server's cores have in their caches: half a gigabyte and more


class Measured(NamedTuple):
    """A number, and the day on which it was measured."""

    value: float
    date: str


def machine_rates(setting: str, model: OpenModel, device: Device) -> Rates | None:
    """What this machine reaches; None: it has not been measured, and a small model is not worth it.

    `setting`: where it is kept, as for `History`; where nothing may be kept, it is measured each time. The disk is
    measured with the model's own blocks, where they are at hand.
    """
    if sum(layout.slot_bytes for layout in model.layouts.values()) < ENOUGH:
        return None
    home = home_of(setting)
    file = None if home is None else home / f"machine-{socket.gethostname()}.json"
    kept = {} if file is None else read(file)
    where = f"{name_of(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    known, wanted = kept.get(where, {}), measurements(model, device)
    if missing := wanted.keys() - known.keys():
        what = " and ".join(sorted(each.partition("_")[0] for each in missing))
        logger.info("measuring %s%s", what, "" if file is None else ", once")
        known |= {each: Measured(wanted[each](), f"{date.today():%Y-%m-%d}") for each in missing}
        if file is not None:
            keep(file, kept | {where: known})
    usable = {name: Measured(*known[name]) for name in (*wanted, "disk") if name in known}  # the disk by other models
    return as_rates(usable, where, device)


def setup_of(device: Device, dtype: str) -> Setup:
    """What a run on this device computes with."""
    return Setup(name_of(device), dtype, torch.get_num_threads(), on_gpu=device.has_host_tier)


def measurements(model: OpenModel, device: Device) -> dict[str, Callable[[], float]]:
    """What can be measured with this model, and how."""
    dtype = model.shell.dtype
    name = str(dtype).removeprefix("torch.")
    wanted: dict[str, Callable[[], float]] = {
        f"compute_{name}": lambda: multiply(ROWS, dtype, device) * 2 * ROWS,
        f"few_{name}": lambda: multiply(STEP, dtype, device) * 2 * STEP,
    }
    if device.has_host_tier:
        wanted["link"] = lambda: copy_blocks(device, inward=True)
        wanted["back"] = lambda: copy_blocks(device, inward=False)
        wanted["memory"] = lambda: copy_within(device)
        wanted[f"below_{name}"] = lambda: look(dtype)
        wanted[f"cores_{name}"] = lambda: multiply(ROWS, dtype, CpuDevice(), UNCACHED) * 2 * ROWS
        wanted[f"few-below_{name}"] = lambda: multiply(1, dtype, CpuDevice(), UNCACHED) * 2
        wanted["launch"] = lambda: launch(device)
    if any(layout.requests for layout in model.layouts.values()):
        wanted["disk"] = lambda: read_blocks(model)
    return wanted


def as_rates(known: Mapping[str, Measured], where: str, device: Device) -> Rates:
    """What was measured, and otherwise what is nominal, each with its reason."""
    rates = NOMINAL_GPU if device.has_host_tier else NOMINAL
    for name, (value, day) in known.items():
        reason, (what, _, dtype) = f"measured on this machine ({where}, {day})", name.partition("_")
        if what in OF_FEW:
            rated, many, rows = OF_FEW[what]
            weights = weights_rate(value, known[f"{many}_{dtype}"].value, getattr(torch, dtype).itemsize, rows)
            rates = rates.because(reason, **{rated: weights})
        elif what == "launch":
            rates = rates.because(f"launches, {reason}", turn=OF_A_TURN * value, step=OF_A_STEP * value)
        else:
            rates = rates.because(reason, **{what: value})
    return rates


def multiply(rows: int, dtype: torch.dtype, device: Device, count: int = 8) -> float:
    """Numbers a second of a matrix that is multiplied with so many tokens; so many take turns, as experts do."""
    with device.place:
        tokens = torch.ones(rows, DEEP, dtype=dtype)
        matrices = cycle([torch.ones(WIDE, DEEP, dtype=dtype) for _ in range(count)])
        out = torch.empty(rows, WIDE, dtype=dtype)

    def product() -> int:
        torch.mm(tokens, next(matrices).t(), out=out)
        device.wait()
        return WIDE * DEEP

    product()  # the first one makes its kernel
    with torch.inference_mode():
        return rate(product, SECONDS)


def copy_blocks(device: Device, *, inward: bool) -> float:
    """Bytes a second between CPU memory and a device, in pieces of an expert's size."""
    here, there = device.allocate_host(COPIED), device.allocate(COPIED)

    def copy() -> int:
        device.copy(*(there, here) if inward else (here, there))
        device.wait()
        return COPIED

    copy()  # fresh memory costs more than copying
    return rate(copy, SECONDS)


def copy_within(device: Device) -> float:
    """Bytes a second that a device's own memory gives and takes."""
    one, other = device.allocate(COPIED), device.allocate(COPIED)

    def copy() -> int:
        other.copy_(one)
        device.wait()
        return 2 * COPIED

    copy()  # the first one makes its kernel
    return rate(copy, SECONDS)


def look(dtype: torch.dtype) -> float:
    """Bytes a second of keys and values that the cores look at, for one new token of each sequence."""
    query = torch.ones(SEQUENCES, 4 * HEADS, 1, WIDTH, dtype=dtype)
    keys, values = (torch.ones(SEQUENCES, HEADS, CONTEXT, WIDTH, dtype=dtype) for _ in range(2))

    def attend() -> int:
        scaled_dot_product_attention(query, keys, values, enable_gqa=True)
        return keys.nbytes + values.nbytes

    with torch.inference_mode():
        attend()  # fresh memory costs more
        return rate(attend, SECONDS)


def launch(device: Device) -> float:
    """Seconds from one small operation to the next, where nobody waits for what they come to."""
    with device.place:
        one = torch.ones(1)

    def launches() -> int:
        for _ in range(LAUNCHES):
            torch.add(one, 1, out=one)
        device.wait()
        return LAUNCHES

    with torch.inference_mode():
        launches()  # the first one makes its kernel
        return 1 / rate(launches, SECONDS)


def read_blocks(model: OpenModel) -> float:
    """Bytes a second of blocks from disk, one behind the other."""
    layouts = cycle(layout for block, layout in model.layouts.items() if not block.is_dense)
    with closing(Reader(model.staging)) as reader:
        slot = allocate(max(layout.slot_bytes for layout in model.layouts.values()))

        def block() -> int:
            layout = next(layouts)
            reader.read(layout, slot)
            return layout.disk_bytes

        block()  # fresh memory costs more than reading
        return rate(block, SECONDS)


def read(file: Path) -> dict[str, Any]:
    """What was kept; nothing if there is none, or it is damaged."""
    try:
        kept = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def keep(file: Path, known: dict[str, Any]) -> None:
    """Write what was measured; that it cannot be written fails no run."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}-{time.monotonic_ns()}")
        draft.write_text(json.dumps(known, indent=1) + "\n")
        draft.replace(file)
    except OSError as error:
        logger.warning("%s could not be written: %s; it will be measured again", file, error.strerror)
