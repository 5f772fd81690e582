"""Where arithmetic happens: in CPU memory, or on a GPU with CPU memory below it."""

import logging
from collections.abc import Callable
from typing import Protocol

import psutil
import torch

from klotski.core import LaneName
from klotski.lanes import PIECE, Clock, InlineLane, Lane, SpanSink
from klotski.lanes.cuda import CudaClock, CudaComputeLane, CudaLane, pin
from klotski.planner.hardware import is_gpu
from klotski.weights.memory import allocate

__all__ = ["CpuDevice", "CudaDevice", "Device", "find_device", "find_gpu", "name_of"]

logger = logging.getLogger(__name__)

# Of what a runtime takes, by torch's allocator: cuBLAS's workspaces, 32 MiB on Hopper for each stream that multiplies,
# and what is lost where it rounds up.
LIBRARIES = 128 << 20
SHARE = 0.9  # of a GPU's free memory; the rest is the allocator's, and the libraries'


class Device(Protocol):
    """What the torch executor asks of a device.

    `place`: torch's word for it. `has_host_tier`: it has memory of its own, with CPU memory below it.
    `cache_blocking`: whether it is faster to compute a layer over pieces that fit into its caches.
    """

    place: torch.device
    has_host_tier: bool
    cache_blocking: bool

    def memory(self) -> tuple[int, str] | None:
        """Bytes of its own memory that a run may take, and why so many; None: they are CPU memory."""

    def limit(self, nbytes: int, runtime: int) -> None:
        """Never take more than so many bytes of its own memory, `runtime` of them for others than the run itself."""

    def taken(self) -> int | None:
        """Bytes of its own memory that were in use since `limit`, at most; None: nobody counts them."""

    def lanes(self, clock: Clock) -> Callable[[LaneName, SpanSink], Lane]:
        """What makes the compute lane, and those on the way to and from CPU memory."""

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Fresh memory [nbytes] of uint8 of the device."""

    def allocate_host(self, nbytes: int) -> torch.Tensor:
        """Fresh CPU memory that the device copies from and to at the link's speed."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy between CPU memory and the device; on a lane, in its order and without a wait."""

    def multiplies_together(self, dtype: torch.dtype) -> bool:
        """Whether experts that stay are multiplied at once: products of few tokens are begun more slowly than done."""

    def wait(self) -> None:
        """Return when the device has done all that it was given."""


class CpuDevice:
    """The cores, and the memory that they compute in."""

    place = torch.device("cpu")
    has_host_tier = False
    cache_blocking = True

    def memory(self) -> tuple[int, str] | None:
        """None."""
        return None

    def limit(self, nbytes: int, runtime: int) -> None:
        """Nothing: the budget is of the process, and what was planned is allocated."""

    def taken(self) -> int | None:
        """None: the process has other memory, too."""
        return None

    def lanes(self, clock: Clock) -> Callable[[LaneName, SpanSink], Lane]:
        """Arithmetic on the caller's thread; there is nothing to be copied."""
        return lambda name, sink: InlineLane(name, sink, clock)

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Fresh CPU memory."""
        return allocate(nbytes)

    def allocate_host(self, nbytes: int) -> torch.Tensor:
        """The same."""
        return allocate(nbytes)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy now."""
        target.copy_(source)

    def multiplies_together(self, dtype: torch.dtype) -> bool:
        """No: a core begins a product at once, and one of fewer rows stays in its cache."""
        return False

    def wait(self) -> None:
        """Return: what was given has been done."""


class CudaDevice:
    """A GPU, by streams and events. Nothing of it has been measured on one yet; see `make test-gpu`."""

    has_host_tier = True
    cache_blocking = False

    def __init__(self, index: int = 0) -> None:
        self.place = torch.device("cuda", index)
        self._pinning = True
        self._pinned: dict[int, Callable[[], object]] = {}  # by its address, what unpins memory

    def memory(self) -> tuple[int, str] | None:
        """What is free, once what an earlier job of a sweep has left is given back: torch's cache, and its limit."""
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0, self.place)
        free, _ = torch.cuda.mem_get_info(self.place)
        return int(SHARE * free), f"{SHARE:.0%} of the {free / 1e9:.1f}GB that are free on {self.place}"

    def limit(self, nbytes: int, runtime: int) -> None:
        """A card with more memory fails where one of so many bytes would; what is the driver's, torch has not."""
        _, total = torch.cuda.mem_get_info(self.place)
        allowed = nbytes - max(0, runtime - LIBRARIES)
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), self.place)
        torch.cuda.reset_peak_memory_stats(self.place)

    def taken(self) -> int | None:
        """What torch's allocator has given away, activations and all."""
        return torch.cuda.max_memory_allocated(self.place)

    def lanes(self, clock: Clock) -> Callable[[LaneName, SpanSink], Lane]:
        """Streams that share the device's clock."""
        ticks = CudaClock(clock, self.place)

        def lane(name: LaneName, sink: SpanSink) -> Lane:
            return (CudaComputeLane if name is LaneName.COMPUTE else CudaLane)(name, sink, clock, ticks)

        return lane

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Memory of the GPU."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self.place)

    def allocate_host(self, nbytes: int) -> torch.Tensor:
        """Pinned memory; where the driver refuses to pin it, plain memory, after one warning."""
        if not self._pinning or not nbytes:
            return allocate(nbytes)
        memory = allocate(nbytes, before_return=self._unpin)
        if (unpin := pin(memory)) is not None:
            self._pinned[memory.data_ptr()] = unpin
        else:
            self._pinning = False
            logger.warning("CPU memory could not be pinned, so that copies to the GPU are slower: see `ulimit -l`")
        return memory

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy on the stream of the lane that this is called on, so that others' copies find a gap in a large one."""
        for piece, of in zip(torch.split(target, PIECE), torch.split(source, PIECE), strict=True):
            piece.copy_(of, non_blocking=True)

    def multiplies_together(self, dtype: torch.dtype) -> bool:
        """Where torch has a kernel for it: in bfloat16, from Ampere on; elsewhere it asks the device for sizes."""
        return dtype is torch.bfloat16 and torch.cuda.get_device_capability(self.place) >= (8, 0)

    def wait(self) -> None:
        """Wait for all streams."""
        torch.cuda.synchronize(self.place)

    def _unpin(self, address: int) -> None:
        if (unpin := self._pinned.pop(address, None)) is not None:
            unpin()


def find_device(gpu: str) -> Device:
    """The GPU of this name (see `HwConfig.gpu`), if there is one that torch can use; else the cores."""
    return (None if gpu == "none" else find_gpu(gpu)) or CpuDevice()


def find_gpu(name: str) -> CudaDevice | None:
    """The first GPU of this name, or with `auto` of any, that torch can use."""
    if not torch.cuda.is_available():
        return None
    for index in range(torch.cuda.device_count()):
        if name == "auto" or is_gpu(name, torch.cuda.get_device_name(index)):
            return CudaDevice(index)
    return None


def name_of(device: Device) -> str:
    """What a device is called by those who know it: its driver, or how many cores there are."""
    if device.place.type == "cuda":
        return torch.cuda.get_device_name(device.place)
    return f"{psutil.cpu_count()} cores"
