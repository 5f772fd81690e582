"""What this machine reaches, measured once and kept: to plan models by that have not been run on it yet.

A run measures more, with its own blocks and shapes; what it learns about its model counts more than this.
"""

import json
import logging
import socket
import time
from collections.abc import Callable
from contextlib import closing
from datetime import date
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil
import torch

from klotski.executors.devices import Device
from klotski.executors.history import home_of
from klotski.executors.rates import rate
from klotski.model import OpenModel
from klotski.planner import NOMINAL, Rates
from klotski.weights.memory import allocate
from klotski.weights.reader import Reader

__all__ = ["machine_rates"]

logger = logging.getLogger(__name__)

SECONDS = 0.25  # of each measurement
ENOUGH = 1 << 30  # bytes of weights: a smaller model is planned by nominal rates, before it would be measured
COPIED = 256 << 20  # bytes
ROWS, FEW, WIDE, DEEP = 768, 16, 2048, 4096  # tokens of products, many and few, and the sides of an expert's matrix


def machine_rates(setting: str, model: OpenModel, device: Device) -> Rates | None:
    """What this machine reaches; None: it has not been measured, and a small model is not worth it.

    `setting`: where it is kept, as for `History`; nothing is measured where nothing may be kept. The disk is measured
    with the model's own blocks, where they are at hand.
    """
    home = home_of(setting)
    if home is None or sum(layout.slot_bytes for layout in model.layouts.values()) < ENOUGH:
        return None
    file = home / f"machine-{socket.gethostname()}.json"
    kept = read(file)
    dtype = model.shell.dtype
    name = str(dtype).removeprefix("torch.")
    where = f"{device.place.type}_" if device.has_host_tier else ""
    compute, product = f"{where}compute_{name}", f"{where}product_{name}"
    wanted: dict[str, Callable[[], float]] = {
        compute: lambda: multiply(ROWS, dtype, device) * 2 * ROWS,
        product: lambda: multiply(FEW, dtype, device) * dtype.itemsize,
    }
    if device.has_host_tier:
        wanted["link"] = lambda: copy_blocks(device, inward=True)
        wanted["back"] = lambda: copy_blocks(device, inward=False)
    if any(layout.requests for layout in model.layouts.values()):
        wanted["disk"] = lambda: read_blocks(model)
    if missing := wanted.keys() - kept.keys():
        logger.info("measuring %s, once", " and ".join(sorted(each.partition("_")[0] for each in missing)))
        kept |= {each: wanted[each]() for each in missing}
        kept["machine"] = f"{torch.get_num_threads()} of {psutil.cpu_count()} cores, {date.today():%Y-%m-%d}"
        keep(file, kept)
    reason = f"measured on this machine ({kept['machine']})"
    disk = kept.get("disk")
    return NOMINAL._replace(
        compute=kept[compute],
        product=kept[product],
        disk=disk or NOMINAL.disk,
        link=kept["link"] if device.has_host_tier else None,
        back=kept["back"] if device.has_host_tier else None,
        reason=reason if disk else f"arithmetic {reason}, the disk not yet",
    )


def multiply(rows: int, dtype: torch.dtype, device: Device) -> float:
    """Numbers a second of a matrix that is multiplied with so many tokens; matrices take turns, as experts do."""
    with device.place:
        tokens = torch.ones(rows, DEEP, dtype=dtype)
        matrices = cycle([torch.ones(WIDE, DEEP, dtype=dtype) for _ in range(8)])
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
