"""What a plan has to know of a model: its sizes, its arithmetic, and what is known of its routers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from klotski.core import Block

__all__ = ["ModelFacts"]


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a model in bytes as they are on the device, and its arithmetic in floating-point operations.

    A token in flight is held twice: by its batch, which waits for its turn in the middle of a layer
    (`waiting_bytes`), and by the workspace of the expert phase (`workspace_bytes`, `rows_bytes` whatever
    their number, and `row_bytes` for each of at most `rows` inside an expert). The batch whose turn it
    is needs `attention_bytes` for each token of the slice that it works on, `score_bytes` for each pair of a
    token and one that it looks at, and `expanded_bytes` for each token that the slice's sequences keep. These are
    with cache blocking, as on a CPU; see `without_cache_blocking`.

    Of each sequence layers of full attention keep all tokens (`kv_bytes`): on the device, or in host memory below it.
    Others keep on the device a window of tokens (`window_bytes`), or a state (`state_bytes`).
    """

    fixed_bytes: int
    block_bytes: Mapping[Block, int]
    stored_bytes: Mapping[Block, int]  # in files: what an arrival reads
    expert_counts: Sequence[int]
    top_k: int
    kv_bytes: int  # of a token of context, in all layers of full attention
    kv_layer_bytes: int  # of these, in the layer that keeps most
    waiting_bytes: int
    workspace_bytes: int
    rows_bytes: int
    attention_bytes: int
    score_bytes: int
    scores_bytes: int  # of what the head gives a sequence, for all whose next tokens are scored at once
    logits_bytes: int  # of what its batch makes of that, to choose a token by
    staging_bytes: int  # of the reader's buffers
    reads_whole_prompts: bool = False  # in one sweep; otherwise they may be cut into pieces
    spare_bytes: int = 0  # of `workspace_bytes`, what other tokens leave alone
    row_bytes: int = 0
    rows: int = 0
    expanded_bytes: int = 0
    window_bytes: int = 0  # of a token, in all layers that keep `window_tokens` of each sequence
    window_tokens: int = 0  # at most; without bound in layers that keep all tokens on the device
    state_bytes: int = 0  # of a sequence, in all layers
    repeated_bytes: int = 0  # as `expanded_bytes`, where heads that share keys and values are computed side by side
    attends_anywhere: bool = False  # whether attention may be computed elsewhere than the rest of a layer
    slice_tokens: int = 0  # or one sequence that has more; 0: a batch is worked on as a whole
    dense_flops: int = 0  # of a token on its way through all layers, experts apart
    expert_flops: int = 0  # of a token in all experts that it chooses
    head_flops: int = 0  # of a sequence that is given a token
    context_flops: int = 0  # of a token of context that others look at, in all layers
    pair_flops: int = 0  # of a token and one that it looks at, in one layer
    spared_flops: int = 0  # of the last layer, for a token of which it only keeps keys and values
    shares: Sequence[Sequence[float]] | None = None  # of a layer's tokens, that chose each expert in earlier runs

    def without_cache_blocking(self) -> "ModelFacts":
        """The facts where a layer works on all tokens of a batch at once, and repeats shared keys and values: a GPU."""
        expanded = self.expanded_bytes + self.repeated_bytes
        return replace(self, slice_tokens=0, expanded_bytes=expanded, repeated_bytes=0)

    def kept_bytes(self, sequences: float, context: float) -> float:
        """Bytes that layers keep of `sequences` with `context` tokens in total, in either tier."""
        return context * self.kv_bytes + self.staying_bytes(sequences, context)

    def staying_bytes(self, sequences: float, context: float) -> float:
        """The same in layers of which nothing lies in host memory."""
        return min(context, sequences * self.window_tokens) * self.window_bytes + sequences * self.state_bytes

    @cached_property
    def weight_bytes(self) -> int:
        """All weights that belong to a layer."""
        return sum(self.block_bytes.values())

    @cached_property
    def num_layers(self) -> int:
        """Layers, with experts or without."""
        return len(self.expert_counts)

    def flops(self, tokens: int, sampled: int, pairs: int, spared: int, padding: int = 0) -> int:
        """Floating-point operations of a sweep: `tokens` through the layers, `sampled` sequences, attended `pairs`.

        `spared`: tokens of which the last layer computes keys and values only. `padding`: tokens that no experts were
        computed for, summed over all layers.
        """
        through = tokens * (self.dense_flops + self.expert_flops) - spared * self.spared_flops
        layers = sum(count > 0 for count in self.expert_counts)
        through -= padding * self.expert_flops // max(1, layers)
        return through + sampled * self.head_flops + pairs * self.pair_flops

    @cached_property
    def choices(self) -> int:
        """Of experts, that a token makes on its way through all layers; 1 where there are none."""
        return max(1, self.top_k * sum(count > 0 for count in self.expert_counts))

    @cached_property
    def num_experts(self) -> int:
        """Experts of all layers."""
        return sum(self.expert_counts)

    @cached_property
    def largest_dense(self) -> int:
        """Bytes of the largest dense part."""
        return max((size for block, size in self.block_bytes.items() if block.is_dense), default=0)

    @cached_property
    def largest_expert(self) -> int:
        """Bytes of the largest expert."""
        return max((size for block, size in self.block_bytes.items() if not block.is_dense), default=0)

    @cached_property
    def mean_expert(self) -> float:
        """Bytes that the arrival of an expert reads, on average."""
        stored = [size for block, size in self.stored_bytes.items() if not block.is_dense]
        return sum(stored) / max(1, len(stored))

    def share(self, block: Block) -> float:
        """The share of tokens that use a block: 1 for a dense part, and as evenly as can be where nothing is known."""
        if block.is_dense:
            return 1.0
        if self.shares is not None:
            return min(1.0, self.shares[block.layer][block.expert])
        return min(1.0, self.top_k / self.expert_counts[block.layer])
