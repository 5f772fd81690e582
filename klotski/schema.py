"""The structured configs: every key of a run, its type and what it means.

With refusals.py the only room that knows OmegaConf. `register()` makes the schemas known to Hydra; `load()` turns
what Hydra composed into a `RunConfig`, or raises a `ConfigError` that names the key.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from klotski.core import Attention, KvCache, Misses, OnDemand, Order, Prediction, Prefetch, Products, Residents
from klotski.errors import ConfigError
from klotski.refusals import did_you_mean, explain
from klotski.units import (
    format_flops,
    format_seconds,
    format_size,
    parse_count,
    parse_rate,
    parse_seconds,
    parse_size,
)

__all__ = [
    "DType",
    "ExecutorConfig",
    "HwConfig",
    "JsonlWorkload",
    "LoadFormat",
    "ModelConfig",
    "PipelineConfig",
    "PlacementConfig",
    "RunConfig",
    "SyntheticWorkload",
    "WorkloadConfig",
    "has_gpu",
    "is_overridden",
    "load",
    "names_a_machine",
    "read_hardware",
    "register",
]


class LoadFormat(Enum):
    """What weights are made from."""

    safetensors = "safetensors"
    dummy = "dummy"


class DType(Enum):
    """The type of the numbers that are computed with."""

    auto = "auto"
    """The checkpoint's own."""
    float32 = "float32"
    bfloat16 = "bfloat16"


@dataclass
class ModelConfig:
    """Which weights."""

    name: str = MISSING
    path: str = MISSING
    """A folder in the Hub's layout, a hub id, or `bundled` for the model in the package."""
    made_by: str = ""
    """The command that writes `path`, where it is not there yet."""
    shape: str = ""
    """A folder with the model's `config.json`, to plan and predict by where its weights are not at hand. A bare name
    is one of those in the package."""
    dtype: DType = DType.auto
    load_format: LoadFormat = LoadFormat.safetensors
    """`dummy` makes random weights up, of a model of which only the config is there; all of them have to fit."""
    auto_device_memory: str = "auto"
    """What `hw.device_memory=auto` means for the bundled model, beside `hw.runtime_memory`."""
    note: str = ""
    """What is said beside each plan and prediction of it, where they are not of the checkpoint as it is published."""


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
    interpreter and torch themselves. `auto`: 80 % of what is free."""
    host_memory: str = "auto"
    """Budget of the tier below a GPU. Without a GPU the device tier is CPU memory, and this is unused."""
    runtime_memory: str = "auto"
    """What the interpreter and torch take of the budget by themselves. `auto`: measured. `0` plans for blocks alone."""
    threads: str = "auto"
    """Cores for arithmetic."""
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
    product_bandwidth: str = "auto"
    """What an expert's weights come into a product at, however few its rows, to plan by. `auto`: what earlier runs of
    the model measured, or `memory_bandwidth`."""
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
OF_A_GPU = ("link_bandwidth", "link_bandwidth_back", "host_memory", "host_memory_bandwidth")
"""And, if it has a GPU, of the way there and what lies below."""
OF_CORES = ("product_bandwidth", "wake_overhead")
"""And otherwise, of cores that multiply."""


@dataclass
class PlacementConfig:
    """What lives where."""

    name: str = MISSING
    residents: Residents = Residents.greedy
    kv_cache: KvCache = KvCache.auto
    """Where keys and values are, if arithmetic happens on a GPU."""
    attention: Attention = Attention.auto
    """Where new tokens look at those that are in CPU memory: on the `device`, the `host`, or where it is faster."""


@dataclass
class PipelineConfig:
    """In which order blocks move and are used. Strategies differ in these switches alone."""

    name: str = MISSING
    n_batches: str = "auto"
    """Batches of the group that share each block's arrival (the paper's n)."""
    batch_size: str = "auto"
    """Sequences decoded together."""
    prefill_tokens: str = "auto"
    """Tokens of prompts in one sweep, at most: what bounds the memory of activations."""
    prefetch: Prefetch = Prefetch.hot
    predictor: Prediction = Prediction.correlation
    """Who says which experts will be hot."""
    hot_experts: str = "auto"
    """How many experts of a layer `prefetch=hot` brings. `auto`: as many as there are slots to spare."""
    expert_slots: str = "auto"
    """Slots that experts stream through: how far the disk may run ahead."""
    on_demand: OnDemand = OnDemand.eager
    order: Order = Order.arrival
    misses: Misses = Misses.move
    """`cheapest` needs a tier below that can compute; where that is a disk, all are moved."""
    products: Products = Products.group
    """`batch`: an expert is multiplied once for each batch, as in other engines. Only predicted."""


@dataclass
class ExecutorConfig:
    """Who carries the run out."""

    name: str = MISSING
    routing: str = "auto"
    """What routers say in a run that is only predicted. `uniform`: any expert is as likely. `auto`: what earlier runs
    of the model learned, and otherwise `uniform`. A run's folder: what they said there, with `record_routing=true`."""


@dataclass
class WorkloadConfig:
    """The requests."""

    name: str = MISSING
    limit: int | None = None
    """Only the first so many requests."""
    temperature: float = 0.0
    """0: greedy. Above: sampled, with noise that depends on `seed` and the request alone."""
    seed: int = 0


@dataclass
class JsonlWorkload(WorkloadConfig):
    """Requests from a file, one JSON object a line."""

    path: str = MISSING
    """The file, or `bundled` for the prompts in the package."""
    max_tokens: int = 128
    """Output tokens of a request whose line has no `max_tokens`."""


@dataclass
class SyntheticWorkload(WorkloadConfig):
    """Requests of random tokens, with no early end."""

    num_requests: int = 32
    input_tokens: int = 64
    output_tokens: int = 32


@dataclass
class RunConfig:
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    hw: HwConfig = field(default_factory=HwConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    paper: str = ""
    """Which case of the Klotski paper's tables is predicted."""
    dry_run: bool = False
    """Show the plan, and load nothing."""
    history: str = "auto"
    """Where what is learned about a model (routing, rates) is kept for the next run: a folder, `none`, or `auto`
    for the user's cache."""
    record_routing: bool = False
    """Write what each router said of each batch to routing.jsonl, for other runs to be predicted by."""
    events: bool = True
    """Write every operation to events.jsonl, and to trace.json for Perfetto."""
    prometheus: int | None = None
    """The port of 127.0.0.1 on which the run serves metrics to Prometheus while it goes on; none by default."""


def register(configs: Path) -> None:
    """Make the schemas known to Hydra, and what configs interpolate; may be called again.

    `${pid:}` is the process id, `${options:}` a list of all groups and options in `configs`. `${product:A,B}` is of two
    numbers, `${pick:KEY,{A:B},C}` is what the key has, or else C.
    """
    OmegaConf.register_new_resolver("pid", os.getpid, replace=True)
    OmegaConf.register_new_resolver("product", lambda one, other: int(one) * int(other), replace=True)
    OmegaConf.register_new_resolver("pick", lambda key, known, other: known.get(key, other), replace=True)
    OmegaConf.register_new_resolver("options", partial(list_options, configs), replace=True)
    store = ConfigStore.instance()
    store.store(group="schema", name="run", node=RunConfig)
    for group, name, node in (
        ("model", "model", ModelConfig),
        ("hw", "hw", HwConfig),
        ("placement", "placement", PlacementConfig),
        ("pipeline", "pipeline", PipelineConfig),
        ("executor", "executor", ExecutorConfig),
        ("workload", "workload_jsonl", JsonlWorkload),
        ("workload", "workload_synthetic", SyntheticWorkload),
    ):
        store.store(group=f"{group}/schema", name=name, node=node)


def list_options(configs: Path) -> str:
    """Every option of every group, with the first sentence of its file's opening comment."""
    lines = []
    groups = [each.name for each in fields(RunConfig) if is_dataclass(each.type)]
    for group in [*groups, "paper", "experiment"]:
        lines.append(group)
        for file in sorted((configs / group).glob("*.yaml")):
            comment = " ".join(line[2:] for line in file.read_text().splitlines() if line.startswith("# "))
            sentence = re.split(r"\.(?:\s|$)", comment.removeprefix("@package _global_ "))[0]
            lines.append(f"  {file.stem:<18} {sentence}")
    return "\n".join(lines)


def load(composed: DictConfig) -> RunConfig:
    """The typed form of what Hydra composed.

    Raises:
        ConfigError: a key does not exist, has no value or does not fit; the message names it.
    """
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise explain(error) from error
    assert isinstance(config, RunConfig)
    for key, siblings in unknown_keys(composed, config):
        raise ConfigError(f"{key} is not a setting; {did_you_mean(key.rpartition('.')[2], siblings)}")
    check(config)
    return config


def names_a_machine(hw: HwConfig) -> bool:
    """Whether a certain machine is meant, with all that it has, so that nothing of the one at hand is said of it."""
    return hw.elsewhere or bool(hw.host) or has_gpu(hw)


def has_gpu(hw: HwConfig) -> bool:
    """Whether the machine that is described has a GPU."""
    return hw.gpu not in ("auto", "none") or hw.link_bandwidth != "auto"


def is_overridden(key: str) -> bool:
    """Whether the command line sets a key itself, and not the option of its group."""
    if not HydraConfig.initialized():
        return False
    return any(text.lstrip("+").partition("=")[0] == key for text in HydraConfig.get().overrides.task)


def check(config: RunConfig) -> None:
    """Refuse values that fit their type but nothing else."""
    for key, path in (("model.path", config.model.path), ("workload.path", getattr(config.workload, "path", "-"))):
        if not path:
            raise ConfigError(f"{key} has no value and needs one; set {key}=...")
    parse_size("model.auto_device_memory", config.model.auto_device_memory)
    check_hardware(config.hw)
    parse_count("hw.threads", config.hw.threads)
    parse_count("pipeline.prefill_tokens", config.pipeline.prefill_tokens)
    n_batches = parse_count("pipeline.n_batches", config.pipeline.n_batches)
    parse_count("pipeline.batch_size", config.pipeline.batch_size)
    parse_count("pipeline.hot_experts", config.pipeline.hot_experts)
    parse_count("pipeline.expert_slots", config.pipeline.expert_slots)
    if config.pipeline.on_demand is OnDemand.lazy and config.pipeline.prefetch is not Prefetch.none:
        raise ConfigError(
            f"pipeline.on_demand=lazy fetches a block when its turn comes and cannot be combined with "
            f"pipeline.prefetch={config.pipeline.prefetch.value}; set pipeline.on_demand=eager or "
            "pipeline.prefetch=none"
        )
    if config.pipeline.on_demand is OnDemand.lazy and config.pipeline.order is Order.arrival:
        raise ConfigError(
            "pipeline.order=arrival needs experts on their way to choose from, and pipeline.on_demand=lazy sends "
            "for one at a time; set pipeline.on_demand=eager or pipeline.order=index"
        )
    if n_batches is not None and n_batches > 4096:
        raise ConfigError(f"pipeline.n_batches={n_batches} is more than the 4096 batches a group may have")
    check_workload(config.workload)
    if config.prometheus is not None and not 1 <= config.prometheus <= 65535:
        raise ConfigError(
            f"prometheus={config.prometheus} is not a port; set one between 1 and 65535, or null for none"
        )


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


def check_workload(workload: WorkloadConfig) -> None:
    """Refuse lengths, counts and temperatures that no run could have."""
    positive = ("limit", "max_tokens", "num_requests", "input_tokens", "output_tokens")
    for name in positive:
        value = getattr(workload, name, None)
        if value is not None and value < 1:
            raise ConfigError(f"workload.{name}={value} must be at least 1")
    if not 0 <= workload.temperature < math.inf:
        raise ConfigError(f"workload.temperature={workload.temperature} must be 0 (greedy) or more")


def unknown_keys(composed: Mapping[Any, Any], config: object, prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Keys that `+` added beside the schema, each with the keys that exist there."""
    assert is_dataclass(config)
    known = [each.name for each in fields(config)]
    for key in composed:
        if key not in known:
            yield f"{prefix}{key}", known
        elif is_dataclass(child := getattr(config, key)):
            yield from unknown_keys(composed[key], child, f"{prefix}{key}.")
