"""Which tokens of a padded batch belong to a sequence.

Prompts are padded on the left to the longest of their batch, and sequences that have ended until the last one ends.
Attention masks keep padding apart from the others; routers know nothing of masks, so that padding must not reach them:
it would ask for experts, and count as popular what it chose.
"""

from collections.abc import Sequence

import torch

from klotski.lanes.cuda import to_device
from klotski.model.experts import ExpertsCall

__all__ = ["Padding", "restore"]

Places = torch.Tensor | None


class Padding:
    """The padding of a batch. `prompts`: tokens of each prompt.

    `ended`: whether each sequence has ended. `skipped`: tokens that no experts were asked for, over all layers so far.
    """

    def __init__(self, prompts: Sequence[int], device: torch.device) -> None:
        self.ended = [False] * len(prompts)
        self.skipped = 0
        self._before = torch.tensor([max(prompts) - length for length in prompts])
        self._device = device
        self._mask: torch.Tensor | None = None  # [B, T] of the step: what belongs to a sequence; None: all does

    def step(self, seen: int, tokens: int) -> None:
        """Begin a step of `tokens` tokens of each sequence, after the `seen` of earlier steps."""
        mask = torch.arange(seen, seen + tokens) >= self._before[:, None]
        mask &= ~torch.tensor(self.ended)[:, None]
        self._mask = None if mask.all() else mask

    def drop(self, calls: Sequence[ExpertsCall]) -> tuple[list[ExpertsCall], list[Places]]:
        """The calls without padding, and which tokens each still has (None: all)."""
        places = self._places([len(call.hidden) for call in calls])
        kept = [
            call if some is None else call._replace(**{name: getattr(call, name)[some] for name in call._fields[1:]})
            for call, some in zip(calls, places, strict=True)
        ]
        self.skipped += sum(len(call.hidden) - len(rest.hidden) for call, rest in zip(calls, kept, strict=True))
        return kept, places

    def tokens(self, hidden: torch.Tensor) -> torch.Tensor:
        """The tokens [T', H] of [B, T, H] that are not padding."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        (some,) = self._places([len(rows)])
        return rows if some is None else rows[some]

    def _places(self, sizes: Sequence[int]) -> list[Places]:
        """Indices of what is not padding, for calls of these sizes [tokens], over the batch's rows in order."""
        if self._mask is None:
            return [None] * len(sizes)
        mask = self._mask if sum(sizes) == self._mask.numel() else self._mask[:, -1]  # the last layer: the last tokens
        assert mask.numel() == sum(sizes), "experts are asked about each token of a step, or about the last ones"
        return [to_device(each.nonzero().view(-1), self._device) for each in torch.split(mask.reshape(-1), list(sizes))]


def restore(answer: torch.Tensor, call: ExpertsCall, places: Places) -> torch.Tensor:
    """The answer [T, H] to a call, zero for padding."""
    return answer if places is None else torch.zeros_like(call.hidden).index_copy_(0, places, answer)
