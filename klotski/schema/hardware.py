"""What a machine has, key by key, and between which values that lies on any machine."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from omegaconf import MISSING

from klotski.errors import ConfigError
from klotski.units import format_flops, format_seconds, format_size, parse_rate, parse_seconds, parse_size

__all__ = [
    "OF_A_GPU",
    "OF_CORES",
    "OF_EACH",
    "PLAUSIBLE",
    "HwConfig",
    "check_hardware",
    "has_gpu",
    "names_a_machine",
    "read_hardware",
]


@dataclass
class HwConfig:
    """Which tiers, and how much of each may be used.

    What is `auto` is found out on the machine at hand. Of a certain machine nothing may be, but what follows from the
    rest: there is nothing here to find it out from.
    """

    name: str = MISSING
    gpu: str = "auto"
    """Which GPU: `auto` for the one at hand, if there is one; `none` leaves it alone; or a name, as its driver has it,
    without the vendor and the form of the card: `GeForce RTX 4090`, `A100`. Where there is none of that name, a run is
    predicted."""
    elsewhere: bool = False
    """Whether a run is only predicted, whatever is at hand."""
    host: str = ""
    """The network's name of the machine that was measured, on any other than which a run is predicted."""
    device_memory: str = "auto"
    """Budget where arithmetic happens: weights, slots, KV cache, activations, and, where that is CPU memory, the
    interpreter and torch themselves. `auto`: 80 % of what is free, of what the process's control group and the limit
    of its address space leave, and of what other runs have not reserved."""
    host_memory: str = "auto"
    """Budget of the host tier, CPU memory below a GPU. `auto`: 80 % of what is free, by the same limits. Without a GPU
    the device tier is CPU memory, and this is unused."""
    runtime_memory: str = "auto"
    """What the interpreter and torch take of the budget by themselves. `auto`: measured. `0` plans for blocks alone."""
    threads: str = "auto"
    """Threads for arithmetic. `auto`: one for each core that the process may run on, or fewer if its CPU quota
    allows fewer. `OMP_NUM_THREADS` counts where it is set."""
    disk_bandwidth: str = "auto"
    """What blocks come from disk at, to plan by: `1.6GB/s`. `auto`: what earlier runs of the model measured."""
    compute_rate: str = "auto"
    """What experts are multiplied at, to plan by, where many tokens share a product: `400GFLOP/s`. Of few tokens,
    `product_bandwidth` and `expert_overhead` set the pace. `auto`: what earlier runs of the model measured."""
    compute_rate_float32: str = "auto"
    """The same for a model in float32. `auto`: as `compute_rate`."""
    dense_rate: str = "auto"
    """What dense parts are multiplied at, with all that goes on between their products, where experts are multiplied
    at `compute_rate`; in float32 in proportion. `auto`: likewise, or three quarters of the experts'."""
    disk_latency: str = "auto"
    """What a block takes longer if the disk was at rest, to plan by: `3ms`."""
    link_bandwidth: str = "auto"
    """From CPU memory to a GPU, to plan by: `25GB/s`. `auto`: measured, if there is a GPU."""
    link_bandwidth_back: str = "auto"
    """From a GPU to CPU memory, to plan by. `auto`: measured, or as much."""
    memory_bandwidth: str = "auto"
    """What cached keys and the head's weights come out of memory at, to plan by: `800GB/s`."""
    host_memory_bandwidth: str = "auto"
    """What the cores look at keys and values in CPU memory below a GPU at, to plan by: `50GB/s`."""
    host_compute_rate: str = "auto"
    """What the cores beside a GPU multiply experts at where these lie in CPU memory, to plan by: `1TFLOP/s`. `auto`:
    measured, if there is a GPU."""
    host_product_bandwidth: str = "auto"
    """What an expert's weights come into a product at there. `auto`: measured, or `host_memory_bandwidth`."""
    product_bandwidth: str = "auto"
    """What an expert's weights come into a product at, beside what its rows take, to plan by. `auto`: what earlier runs
    of the model measured, or `memory_bandwidth`."""
    batch_overhead: str = "auto"
    """A batch's turn in a layer, whatever its size, to plan by: `1ms`."""
    expert_overhead: str = "auto"
    """An expert's turn, likewise: `100us`."""
    wake_overhead: str = "auto"
    """What an operation takes longer once the cores have waited for some milliseconds, likewise: `500us`."""
    operation_overhead: str = "auto"
    """The pipeline's own, from one operation to the next, likewise: `50us`."""


class Range(NamedTuple):
    """Between which values something lies on any machine: on those that compute on their cores, on those with a GPU."""

    unit: str  # `bytes` of a size, `B` or `FLOP` of a rate, `s` of a time
    least: float
    most: float
    most_of_gpu: float

    def format(self, value: float) -> str:
        """A value as people write it."""
        match self.unit:
            case "s":
                return format_seconds(value)
            case "FLOP":
                return format_flops(value)
            case "B":
                return f"{format_size(value)}/s"
        return format_size(value)


PLAUSIBLE = {
    # The largest servers hold 32 TB, the largest GPUs some 300 GB. A model of a few kilobytes needs next to nothing.
    "device_memory": Range("bytes", 1, 40e12, 500e9),
    "host_memory": Range("bytes", 1, 40e12, 40e12),
    "runtime_memory": Range("bytes", 0, 50e9, 50e9),
    # From a worn disk, in requests of a few kilobytes, to NVMe drives of PCIe 5 side by side.
    "disk_bandwidth": Range("B", 1e6, 3e10, 3e10),
    # From PCIe 3 x1 to NVLink-C2C, which gives 450 GB/s each way.
    "link_bandwidth": Range("B", 5e8, 5e11, 5e11),
    "link_bandwidth_back": Range("B", 5e8, 5e11, 5e11),
    # Two sockets of twelve channels of DDR5 have 1.2 TB/s; the largest GPUs 8 TB/s.
    "memory_bandwidth": Range("B", 1e9, 1.3e12, 1e13),
    "host_memory_bandwidth": Range("B", 1e9, 1.3e12, 1.3e12),
    "host_compute_rate": Range("FLOP", 1e8, 1e15, 1e15),
    "host_product_bandwidth": Range("B", 1e5, 1.3e12, 1.3e12),
    # An expert of a few kilobytes is done before it has got under way.
    "product_bandwidth": Range("B", 1e5, 1.3e12, 1e13),
    # Two sockets with matrix units reach some hundred TFLOP/s; a B200 has a peak of 2.3 PFLOP/s in bfloat16.
    "compute_rate": Range("FLOP", 1e8, 1e15, 5e15),
    "compute_rate_float32": Range("FLOP", 1e8, 1e14, 5e14),
    "dense_rate": Range("FLOP", 1e5, 1e15, 5e15),
    "disk_latency": Range("s", 1e-7, 1.0, 1.0),
    "batch_overhead": Range("s", 1e-7, 1.0, 1.0),
    "expert_overhead": Range("s", 1e-7, 1.0, 1.0),
    "wake_overhead": Range("s", 1e-7, 1.0, 1.0),
    "operation_overhead": Range("s", 1e-7, 0.05, 0.05),
}
OVER_PCIE = 130e9  # bytes a second: x16 of its sixth generation, each way
OVER_NVLINK = re.compile(r"GH200|GB200|GB300|GB10")  # GPUs that share a board with their CPU
OF_EACH = (
    "device_memory",
    "runtime_memory",
    "disk_bandwidth",
    "disk_latency",
    "memory_bandwidth",
    "compute_rate",
    "compute_rate_float32",
    "dense_rate",
    "batch_overhead",
    "expert_overhead",
    "operation_overhead",
)
"""What has to be said of a certain machine."""
OF_A_GPU = ("link_bandwidth", "link_bandwidth_back", "host_memory", "host_memory_bandwidth", "host_compute_rate")
"""And, if it has a GPU, of the way there and what lies below."""
OF_CORES = ("product_bandwidth", "wake_overhead")
"""And otherwise, of cores that multiply."""


def names_a_machine(hw: HwConfig) -> bool:
    """Whether a certain machine is meant, with all that it has, so that nothing of the one at hand is said of it."""
    return hw.elsewhere or bool(hw.host) or has_gpu(hw)


def has_gpu(hw: HwConfig) -> bool:
    """Whether the machine that is described has a GPU."""
    return hw.gpu not in ("auto", "none") or hw.link_bandwidth != "auto"


def check_hardware(hw: HwConfig) -> None:
    """Refuse values that no machine has, and a certain machine of which too little is said."""
    for name, plausible in PLAUSIBLE.items():
        key, text, value = f"hw.{name}", getattr(hw, name), read_hardware(hw, name)
        most = plausible.most_of_gpu if has_gpu(hw) else plausible.most
        if name.startswith("link_") and has_gpu(hw) and hw.gpu != "auto" and not OVER_NVLINK.search(hw.gpu):
            most = OVER_PCIE
        if value is not None and not plausible.least <= value <= most:
            bounds = f"{plausible.format(plausible.least)} and {plausible.format(most)}"
            raise ConfigError(f"{key}={text} is not what a machine has; it lies between {bounds}")
    if hw.gpu == "none" and hw.link_bandwidth != "auto":
        raise ConfigError(f"hw.gpu=none leaves hw.link_bandwidth={hw.link_bandwidth} nowhere to lead; set it to auto")
    if names_a_machine(hw):
        for name in (*OF_EACH, *(OF_A_GPU if has_gpu(hw) else OF_CORES)):
            if read_hardware(hw, name) is None:
                raise ConfigError(
                    f"hw.{name} has no value, and of a machine that hw={hw.name} names nothing is found out; "
                    f"set hw.{name}=..."
                )


def read_hardware(hw: HwConfig, name: str) -> float | None:
    """A number of the hardware, in bytes, seconds or units a second; None for `auto`.

    Raises:
        ConfigError: it is not one; the message names the key.
    """
    key, text, plausible = f"hw.{name}", getattr(hw, name), PLAUSIBLE[name]
    match plausible.unit:
        case "bytes":
            return parse_size(key, text, least=int(plausible.least))
        case "s":
            return parse_seconds(key, text)
    return parse_rate(key, text, plausible.unit)
