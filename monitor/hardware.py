"""What the GPUs of this machine are doing, by NVML; nothing where there is no driver."""

from collections.abc import Callable
from typing import NamedTuple

import pynvml

__all__ = ["Gpu", "look_at_gpus"]


KIB = 1024  # the driver counts in these


class Gpu(NamedTuple):
    """A GPU now: shares of one, bytes, bytes a second."""

    name: str
    busy: float
    used: int
    memory: int
    inward: float
    outward: float


def look_at_gpus() -> list[Gpu]:
    """All of them."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [look(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def look(handle: object) -> Gpu:
    """One of them; what its driver does not tell is 0."""
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    inward = ask(lambda: pynvml.nvmlDeviceGetPcieThroughput(handle, pynvml.NVML_PCIE_UTIL_RX_BYTES))
    outward = ask(lambda: pynvml.nvmlDeviceGetPcieThroughput(handle, pynvml.NVML_PCIE_UTIL_TX_BYTES))
    busy = ask(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    name = str(pynvml.nvmlDeviceGetName(handle))
    return Gpu(name, busy / 100, int(memory.used), int(memory.total), KIB * inward, KIB * outward)


def ask(what: Callable[[], float]) -> float:
    """A number, or 0 where the driver does not tell."""
    try:
        return float(what())
    except pynvml.NVMLError:
        return 0.0
