"""The arithmetic of a layer's experts over the tokens of a whole group.

The tokens of all batches that chose an expert are gathered into one matrix and multiplied once.
Each token's K outputs are kept apart until all are there, and summed in the order of its own
choices: the sum does not depend on the order in which experts were computed, nor on how tokens
were spread over batches. The products themselves may: a matrix library picks its kernel by the
number of rows, and the last bits follow the kernel.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

__all__ = ["ExpertPhase", "ExpertsCall"]


class ExpertsCall(NamedTuple):
    """One batch's question: `hidden` [T, H], `choices` (experts) and `weights` [T, K]."""

    module: nn.Module
    hidden: torch.Tensor
    choices: torch.Tensor
    weights: torch.Tensor

    def counts(self, num_experts: int) -> tuple[int, ...]:
        """Tokens of each expert."""
        return tuple(self.choices.flatten().bincount(minlength=num_experts).tolist())


class ExpertPhase:
    """One layer's experts over one group's tokens: `compute` each used expert, then `outputs`."""

    def __init__(self, calls: Sequence[ExpertsCall]) -> None:
        self._module: Any = calls[0].module
        self._sizes = [len(call.hidden) for call in calls]
        self._hidden = torch.cat([call.hidden for call in calls])
        self._weights = torch.cat([call.weights for call in calls])
        choices = torch.cat([call.choices for call in calls])
        self._top_k = choices.shape[1]
        experts, self._order = choices.flatten().sort(stable=True)
        bounds = torch.searchsorted(experts, torch.arange(int(experts[-1]) + 2, device=experts.device))
        self._bounds = bounds.tolist()
        dtype = torch.promote_types(self._hidden.dtype, self._weights.dtype)
        self._weighted = torch.empty((choices.numel(), self._hidden.shape[1]), dtype=dtype, device=self._hidden.device)

    def compute(self, expert: int, views: Mapping[str, torch.Tensor]) -> None:
        """One expert over all of its tokens; `views` are its parameters by their own names."""
        rows = self._order[self._bounds[expert] : self._bounds[expert + 1]]
        output = expert_forward(self._module, self._hidden[rows // self._top_k], views)
        self._weighted[rows] = output * self._weights.view(-1, 1)[rows]

    def outputs(self) -> tuple[torch.Tensor, ...]:
        """The combined output [T, H] of each call, in order."""
        combined = self._weighted.view(-1, self._top_k, self._hidden.shape[1]).sum(dim=1)
        return torch.split(combined.to(self._hidden.dtype), self._sizes)


def expert_forward(module: Any, tokens: torch.Tensor, views: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """One expert over `tokens` [T, H], as the flags that the module carries have it."""
    up = "gate_up_proj" if module.has_gate else "up_proj"
    hidden = project(tokens, views[up], views.get(f"{up}_bias"), module.is_transposed)
    hidden = module._apply_gate(hidden) if module.has_gate else module.act_fn(hidden)
    output = project(hidden, views["down_proj"], views.get("down_proj_bias"), module.is_transposed)
    return module.post_expert_norm(output) if getattr(module, "has_post_expert_norm", False) else output


def project(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, is_transposed: bool) -> torch.Tensor:
    """A linear map whose weight is [out, in], or [in, out] where the model keeps it transposed."""
    if not is_transposed:
        return nn.functional.linear(tokens, weight, bias)
    return tokens @ weight if bias is None else torch.addmm(bias, tokens, weight)
