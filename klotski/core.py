"""The words of the house, as small types. No torch, no I/O: every room may import these."""

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray  # numpy takes longer to load than a refused config to be refused

__all__ = [
    "DENSE",
    "FIXED",
    "LEAST_TEMPERATURE",
    "STEP",
    "Attention",
    "Block",
    "Compute",
    "KvCache",
    "LaneName",
    "Misses",
    "OnDemand",
    "Operation",
    "Order",
    "Prediction",
    "Prefetch",
    "PrefetchCount",
    "Products",
    "Request",
    "Residents",
    "Result",
    "Routing",
    "Span",
    "SweepReport",
    "is_temperature",
    "product_rows",
]

DENSE = -1
"""The `expert` of a block that is the dense part of its layer."""
LEAST_TEMPERATURE = 1e-6
"""Of sampling: scores divided by less may be infinite in float32, and which of those comes first would be chosen."""
STEP = 16
"""A product has a multiple of so many rows: each number of rows has kernels of its own, of 0.6 MB."""


class Block(NamedTuple):
    """The unit of weights that moves: the dense part of one layer, or one of its experts."""

    layer: int
    expert: int = DENSE

    @property
    def is_dense(self) -> bool:
        """Whether this is the dense part of its layer: attention, norms, router, shared experts."""
        return self.expert == DENSE

    def __str__(self) -> str:
        if self == FIXED:
            return "embeddings and head"
        return f"layer {self.layer} {'dense' if self.is_dense else f'expert {self.expert}'}"


FIXED = Block(layer=-1)
"""What belongs to no layer: embeddings, the last norm, the head. Always on the device."""


class LaneName(StrEnum):
    """The lanes of a machine. Where the device tier is CPU memory there is no link."""

    DISK = "disk"
    LINK = "link"  # blocks, from CPU memory into a GPU
    KV_IN = "kv_in"  # keys and values on the same way
    KV_OUT = "kv_out"  # and new ones back
    CORES = "cores"  # what is computed in CPU memory beside a GPU: attention over what stays there, and experts
    COMPUTE = "compute"


class Compute(StrEnum):
    """What an operation on the compute lane does."""

    START = "start"  # a batch comes in: its prompt is embedded
    ATTENTION = "attention"  # a batch goes through a layer's dense part, up to its router
    PROJECT = "project"  # or, if keys and values stay elsewhere: from what attention gave up to the router
    GATHER = "gather"  # the tokens of all batches are sorted by expert
    EXPERT = "expert"  # one expert, or several that stay at once, over the tokens of all batches
    ANSWER = "answer"  # what the cores made of experts that they computed where these lie comes back
    COMBINE = "combine"  # experts' outputs are summed for each token
    FINISH = "finish"  # a batch leaves the layer
    SCORE = "score"  # the head, over the last tokens of some batches
    SAMPLE = "sample"  # a batch chooses its next tokens, and comes to the first layer again


class Operation(NamedTuple):
    """A piece of work for a lane, described well enough to be traced or to be simulated."""

    kind: str
    layer: int
    expert: int = DENSE
    batch: int = -1  # -1: the whole group
    nbytes: int = 0  # moved by the operation
    tokens: int = 0  # worked on by the operation
    parts: tuple[tuple[int, int], ...] = ()  # of several experts at once: each, and the tokens of it


def is_temperature(value: float) -> bool:
    """Whether a number is a temperature: 0, which is greedy, or one that scores can be divided by."""
    return value == 0 or LEAST_TEMPERATURE <= value < math.inf


def product_rows(tokens: int) -> int:
    """Rows of an expert's product for so many tokens."""
    return -(-tokens // STEP) * STEP


class Span(NamedTuple):
    """One operation on one lane, in seconds since the run's clock started."""

    lane: str
    operation: Operation
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class SweepReport:
    """One sweep, in seconds of the run's clock and tokens that went through the layers."""

    index: int
    begin: float
    end: float
    batches: int
    prefill_tokens: int
    decode_tokens: int
    output_tokens: int
    cache_bytes: int  # of the group's KV caches at the sweep's end
    pairs: int  # of a token and one that it looks at, in all layers
    spared: int  # tokens of prompts of which the last layer only keeps keys and values
    padding: int = 0  # tokens that no experts were computed for, over all layers


class Request(NamedTuple):
    """One prompt, in tokens, and how far to go. `temperature`: 0 is greedy; `noise`: the seed of what is sampled."""

    id: str | int
    prompt: tuple[int, ...]
    max_tokens: int
    number: int  # its place in the workload
    temperature: float = 0.0
    noise: int = 0


class Result(NamedTuple):
    """What came of a request. `reason`: `stop` (the model ended) or `length`."""

    request: Request
    token_ids: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Routing:
    """What the routers said about one batch at one layer.

    `counts`: tokens for each expert. `choices` [T, K]: the experts of each token; None: nobody kept them.
    """

    counts: tuple[int, ...]
    choices: "NDArray[Any] | None" = None

    @property
    def used(self) -> tuple[int, ...]:
        """The experts that at least one token chose, by index."""
        return tuple(expert for expert, count in enumerate(self.counts) if count)


@dataclass
class PrefetchCount:
    """How prefetching fared in one layer, over all sweeps.

    `requested`: experts that were sent for before any router asked for them; `used`: those of them that
    one asked for then. `named`: experts that were held to be hot, here already or not; `among_hottest`:
    those of them that were among as many that truly got most tokens.
    """

    requested: int = 0
    used: int = 0
    named: int = 0
    among_hottest: int = 0

    @classmethod
    def total(cls, layers: Iterable["PrefetchCount"]) -> "PrefetchCount":
        """Over all layers."""
        return cls(*(sum(counts) for counts in zip(*map(astuple, layers), strict=True)))


class Prefetch(Enum):
    """What is brought before it is asked for: nothing, the whole layer (which takes slots for all of it), its hot
    experts.

    `layer`: while the layer before is computed. `sublayer`: a layer's experts while its own attention is.
    """

    none = "none"
    layer = "layer"
    sublayer = "sublayer"
    hot = "hot"

    @property
    def is_whole(self) -> bool:
        """Whether all of a layer is brought, used or not."""
        return self in (Prefetch.layer, Prefetch.sublayer)


class OnDemand(Enum):
    """When an expert that nobody brought is sent for: at its turn, or once its use is known."""

    lazy = "lazy"
    eager = "eager"


class Misses(Enum):
    """What becomes of an expert that is not here: it is moved, or computed where it lies if that is faster."""

    move = "move"
    cheapest = "cheapest"


class Products(Enum):
    """What an expert is multiplied with at a time: the tokens of the whole group, or those of one batch."""

    group = "group"
    batch = "batch"


class Order(Enum):
    """In which order a layer's experts are computed.

    `batch`: batch after batch, so that all experts have to be here for the first. `arrival`: those that are here,
    hottest first; then the others as they arrive.
    """

    batch = "batch"
    index = "index"
    hot_first = "hot_first"
    arrival = "arrival"


class KvCache(Enum):
    """Where keys and values are: on the device, in CPU memory below it, or as planned."""

    auto = "auto"
    device = "device"
    host = "host"


class Attention(Enum):
    """Where one new token of each sequence looks at keys and values that are in CPU memory below a GPU.

    `device`: on the device, to which they are moved. `host`: where they are, on the cores. `auto`: as planned.
    """

    auto = "auto"
    device = "device"
    host = "host"


class Prediction(Enum):
    """Who says which experts of a layer will be hot; see `pipeline/predictors.py`."""

    correlation = "correlation"
    lookahead = "lookahead"
    popularity = "popularity"
    random = "random"
    none = "none"


class Residents(Enum):
    """What becomes of memory that is left over.

    `greedy`, `usage`: it holds blocks that stay for the whole run, evenly over the layers or by what
    earlier runs used. `lru`, `lfu`: it is a cache of the experts that were used last, or most often.
    """

    none = "none"
    greedy = "greedy"
    usage = "usage"
    lru = "lru"
    lfu = "lfu"
