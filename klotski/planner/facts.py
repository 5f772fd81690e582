"""What a plan is made from: the model's sizes, and what the workload asks of memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from klotski.core import Block

__all__ = ["Demand", "ModelFacts"]


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a model in bytes, as they are on the device.

    `kv_bytes` is an upper bound for each token of context; `activation_bytes` for each token in
    flight in a sweep: residual, normed input and gathered copy, its K outputs, and the inside of
    an expert to which every token may have gone.
    """

    fixed_bytes: int
    block_bytes: Mapping[Block, int]
    expert_counts: Sequence[int]
    top_k: int
    kv_bytes: int
    activation_bytes: int
    staging_bytes: int  # of the reader's buffers
    logits_bytes: int  # for each sequence of a batch

    @property
    def weight_bytes(self) -> int:
        """All weights."""
        return self.fixed_bytes + sum(self.block_bytes.values())

    def largest(self, *, dense: bool) -> int:
        """The largest block of a kind."""
        return max((size for block, size in self.block_bytes.items() if block.is_dense is dense), default=0)


@dataclass(frozen=True)
class Demand:
    """The workload: prompt length and longest output of each request, in the order of batches."""

    lengths: Sequence[tuple[int, int]]
    _heaviest: dict[int, tuple[list[int], list[int]]] = field(default_factory=dict, init=False, repr=False)

    def tokens(self, n_batches: int, batch_size: int) -> tuple[int, int]:
        """Tokens of KV cache, and tokens in flight, that the heaviest group of n batches needs."""
        if batch_size not in self._heaviest:  # a planner asks for every n of one size
            self._heaviest[batch_size] = self._cut(batch_size)
        contexts, prompts = self._heaviest[batch_size]
        return sum(contexts[:n_batches]), sum(prompts[:n_batches])

    def _cut(self, batch_size: int) -> tuple[list[int], list[int]]:
        """Tokens of cache and of prompts of each batch, heaviest first.

        Batches are cut in order; each is padded to its longest prompt and lives as long as its
        longest output.
        """
        contexts, prompts = [], []
        for start in range(0, len(self.lengths), batch_size):
            batch = self.lengths[start : start + batch_size]
            longest = max(prompt for prompt, _ in batch)
            prompts.append(len(batch) * longest)
            contexts.append(len(batch) * (longest + max(output for _, output in batch)))
        return sorted(contexts, reverse=True), sorted(prompts, reverse=True)
