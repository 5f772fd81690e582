"""What a workload asks of memory and of time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

__all__ = ["Demand", "Group"]


@dataclass(frozen=True)
class Group:
    """What the heaviest group of n batches asks of memory, in tokens."""

    context_tokens: int  # of KV cache, for all batches to their end
    prompt_tokens: int
    longest: int  # tokens of the longest sequence, to its end
    sequences: int
    batch_size: int
    output_tokens: float  # of a sequence, with padding until its batch ends; in the mean over all batches


class _Batches(NamedTuple):
    """All batches of one size: tokens of cache and of prompts of the heaviest, the two heaviest, and so on."""

    contexts: list[int]
    prompts: list[int]
    output_tokens: float  # as in `Group`


@dataclass(frozen=True)
class Demand:
    """The workload: prompt length and longest output of each request, in the order of batches."""

    lengths: Sequence[tuple[int, int]]
    _batches: dict[int, _Batches] = field(default_factory=dict, init=False, repr=False)
    _groups: dict[tuple[int, int], Group] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(prompt + output for prompt, output in self.lengths)

    @cached_property
    def output_tokens(self) -> float:
        """Output tokens of a request, on average."""
        return sum(output for _, output in self.lengths) / len(self.lengths)

    def group(self, n_batches: int, batch_size: int) -> Group:
        """The heaviest group of n batches. Worked out once: a planner asks for it with every size of a prefill."""
        key = n_batches, batch_size
        if key not in self._groups:
            self._groups[key] = self._group(n_batches, batch_size)
        return self._groups[key]

    def _group(self, n_batches: int, batch_size: int) -> Group:
        if batch_size not in self._batches:  # a planner asks for every n of one size
            self._batches[batch_size] = self._cut(batch_size)
        contexts, prompts, output_tokens = self._batches[batch_size]
        last = min(n_batches, len(contexts)) - 1
        sequences = min(n_batches * batch_size, len(self.lengths))
        batch_size = min(batch_size, len(self.lengths))
        return Group(contexts[last], prompts[last], self.longest, sequences, batch_size, output_tokens)

    def _cut(self, batch_size: int) -> _Batches:
        """Batches are cut in order; each is padded to its longest prompt and lives as long as its longest output."""
        contexts, prompts, outputs = [], [], []
        for start in range(0, len(self.lengths), batch_size):
            batch = self.lengths[start : start + batch_size]
            longest, lasting = (max(lengths) for lengths in zip(*batch, strict=True))
            prompts.append(len(batch) * longest)
            contexts.append(len(batch) * (longest + lasting))
            outputs.append(len(batch) * lasting)
        contexts, prompts = (list(accumulate(sorted(each, reverse=True))) for each in (contexts, prompts))
        return _Batches(contexts, prompts, sum(outputs) / len(self.lengths))
