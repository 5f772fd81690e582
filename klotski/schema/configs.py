"""The structured configs: every key of a run, its type and what it means."""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from klotski.core import Attention, KvCache, Misses, OnDemand, Order, Prediction, Prefetch, Products, Residents
from klotski.schema.hardware import HwConfig

__all__ = [
    "DType",
    "ExecutorConfig",
    "JsonlWorkload",
    "LoadFormat",
    "ModelConfig",
    "PipelineConfig",
    "PlacementConfig",
    "RunConfig",
    "SyntheticWorkload",
    "WorkloadConfig",
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
    """`cheapest`: of the experts that are not on a GPU, and lie in CPU memory below it, the cores compute there as many
    of the coldest as lets them end with what moves meanwhile. Where the tier below is a disk, all are moved."""
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
    for the user's cache. Rates are kept by host, device, dtype and number of threads; with `none` they are measured
    before each run of a model of a gigabyte or more."""
    record_routing: bool = False
    """Write what each router said of each batch to routing.jsonl, for other runs to be predicted by."""
    events: bool = True
    """Write every operation to events.jsonl, and to trace.json for Perfetto."""
    prometheus: int | None = None
    """The port of 127.0.0.1 on which the run serves metrics to Prometheus while it goes on; none by default."""
