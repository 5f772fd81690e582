"""What a plan is made from: the model's sizes, and what the workload asks of memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from klotski.core import Block

__all__ = ["Demand", "Group", "ModelFacts"]


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a model in bytes as they are on the device, and its arithmetic in floating-point operations.

    A token in flight is held twice: by its batch, which waits for its turn in the middle of a layer
    (`waiting_bytes`), and by the workspace of the expert phase (`workspace_bytes`, `rows_bytes` whatever
    their number, and `row_bytes` for each of at most `rows` inside an expert). The batch whose turn it
    is needs `attention_bytes` for each token of the slice that it works on, and `score_bytes` for each
    pair of a token and one that it looks at.
    """

    fixed_bytes: int
    block_bytes: Mapping[Block, int]
    stored_bytes: Mapping[Block, int]  # in files: what an arrival reads
    expert_counts: Sequence[int]
    top_k: int
    kv_bytes: int  # of a token of context, at most
    waiting_bytes: int
    workspace_bytes: int
    rows_bytes: int
    attention_bytes: int
    score_bytes: int
    logits_bytes: int  # of a sequence that is given a token
    staging_bytes: int  # of the reader's buffers
    reads_whole_prompts: bool = False  # in one sweep; otherwise they may be cut into pieces
    spare_bytes: int = 0  # of `workspace_bytes`, what other tokens leave alone
    row_bytes: int = 0
    rows: int = 0
    slice_tokens: int = 0  # or one sequence that has more; 0: a batch is worked on as a whole
    dense_flops: int = 0  # of a token on its way through all layers, experts apart
    expert_flops: int = 0  # of a token in all experts that it chooses
    head_flops: int = 0  # of a sequence that is given a token
    pair_flops: int = 0  # of a token and one that it looks at, in one layer
    spared_flops: int = 0  # of the last layer, for a token of which it only keeps keys and values

    @cached_property
    def weight_bytes(self) -> int:
        """All weights that belong to a layer."""
        return sum(self.block_bytes.values())

    @cached_property
    def num_layers(self) -> int:
        """Layers, with experts or without."""
        return len(self.expert_counts)

    def flops(self, tokens: int, sampled: int, pairs: int, spared: int) -> int:
        """Operations of a sweep with so many tokens, sequences that are given one, pairs, and spared tokens."""
        through = tokens * (self.dense_flops + self.expert_flops) - spared * self.spared_flops
        return through + sampled * self.head_flops + pairs * self.pair_flops

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


@dataclass(frozen=True)
class Group:
    """What the heaviest group of n batches asks of memory, in tokens."""

    context_tokens: int  # of KV cache, for all batches to their end
    prompt_tokens: int
    longest: int  # tokens of the longest sequence, to its end
    sequences: int
    batch_size: int


@dataclass(frozen=True)
class Demand:
    """The workload: prompt length and longest output of each request, in the order of batches."""

    lengths: Sequence[tuple[int, int]]
    _heaviest: dict[int, tuple[list[int], list[int]]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(prompt + output for prompt, output in self.lengths)

    @cached_property
    def output_tokens(self) -> float:
        """Output tokens of a request, on average."""
        return sum(output for _, output in self.lengths) / len(self.lengths)

    def group(self, n_batches: int, batch_size: int) -> Group:
        """The heaviest group of n batches."""
        if batch_size not in self._heaviest:  # a planner asks for every n of one size
            self._heaviest[batch_size] = self._cut(batch_size)
        contexts, prompts = self._heaviest[batch_size]
        last = min(n_batches, len(contexts)) - 1
        sequences = min(n_batches * batch_size, len(self.lengths))
        return Group(contexts[last], prompts[last], self.longest, sequences, min(batch_size, len(self.lengths)))

    def _cut(self, batch_size: int) -> tuple[list[int], list[int]]:
        """Tokens of cache and of prompts of the heaviest batch, the two heaviest, and so on.

        Batches are cut in order; each is padded to its longest prompt and lives as long as its
        longest output.
        """
        contexts, prompts = [], []
        for start in range(0, len(self.lengths), batch_size):
            batch = self.lengths[start : start + batch_size]
            longest = max(prompt for prompt, _ in batch)
            prompts.append(len(batch) * longest)
            contexts.append(len(batch) * (longest + max(output for _, output in batch)))
        return [list(accumulate(sorted(each, reverse=True))) for each in (contexts, prompts)]  # type: ignore[return-value]
