"""What this machine is doing now: its cores, and its GPUs by NVML, if it has any."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pynvml

__all__ = ["Gpu", "Gpus"]

KIB = 1024  # the driver counts in these


class Gpu(NamedTuple):
    """A GPU now: shares of one, bytes, bytes a second. None: its driver does not tell."""

    name: str
    busy: float | None
    used: int | None
    memory: int | None
    inward: float | None
    outward: float | None


class Gpus:
    """All GPUs. The driver's library is begun once, by the thread that looks first."""

    def __init__(self) -> None:
        self._is_there: bool | None = None

    def look(self) -> list[Gpu]:
        """Each of them; none where there is no driver. May take long: not for the thread that draws."""
        if self._is_there is None:
            self._is_there = ask(pynvml.nvmlInit, failed=False) is not False
        if not self._is_there:
            return []
        return [look(number) for number in range(ask(pynvml.nvmlDeviceGetCount) or 0)]

    def close(self) -> None:
        """Give the library back."""
        if self._is_there:
            ask(pynvml.nvmlShutdown)
        self._is_there = None


def look(number: int) -> Gpu:
    """One of them. What fails for it does not hide the others, nor what else it tells."""
    handle = ask(lambda: pynvml.nvmlDeviceGetHandleByIndex(number))
    if handle is None:
        return Gpu(f"GPU {number}", None, None, None, None, None)
    memory = ask(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
    inward = ask(lambda: pynvml.nvmlDeviceGetPcieThroughput(handle, pynvml.NVML_PCIE_UTIL_RX_BYTES))
    outward = ask(lambda: pynvml.nvmlDeviceGetPcieThroughput(handle, pynvml.NVML_PCIE_UTIL_TX_BYTES))
    busy = ask(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    return Gpu(
        f"GPU {number} {ask(lambda: pynvml.nvmlDeviceGetName(handle)) or ''}".strip(),
        None if busy is None else busy / 100,
        None if memory is None else int(memory.used),
        None if memory is None else int(memory.total),
        None if inward is None else KIB * inward,
        None if outward is None else KIB * outward,
    )


def ask(what: Callable[[], Any], failed: Any = None) -> Any:
    """What the driver tells, or `failed` where it does not."""
    try:
        return what()
    except pynvml.NVMLError:
        return failed
