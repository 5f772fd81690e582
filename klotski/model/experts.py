"""The arithmetic of a layer's experts over the tokens of a whole group.

The tokens of all batches that chose an expert are gathered into one matrix and multiplied once, in
pieces of `ROWS`, which costs no speed and bounds the memory inside an expert. Each token's K
outputs are kept apart until all are there, and summed in the order of its own choices: the sum
does not depend on the order in which experts were computed, nor on how tokens were spread over
batches. The products themselves may: a matrix library picks its kernel by the number of rows, and
the last bits follow the kernel.

Everything large lies in a `Workspace` that is allocated once: on a virtual machine, fresh memory
costs more than the arithmetic of a small expert.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.integrations.moe import _default_apply_gate

from klotski.weights import allocate

__all__ = ["ExpertPhase", "ExpertsCall", "Workspace", "workspace_bytes"]

ROWS = 512  # tokens of one product; more are no faster
STEP = 16  # a product has a multiple of so many rows: each number of rows has kernels of its own, of 0.6 MB
GATED = 128  # rows whose gate is applied at a time: what comes between stays in the cache
SUMMED = 16  # tokens whose outputs are summed at a time, likewise

Views = Mapping[str, torch.Tensor]


class ExpertsCall(NamedTuple):
    """One batch's question: `hidden` [T, H], `choices` (experts) and `weights` [T, K]."""

    module: nn.Module
    hidden: torch.Tensor
    choices: torch.Tensor
    weights: torch.Tensor

    def counts(self, num_experts: int) -> tuple[int, ...]:
        """Tokens of each expert."""
        return tuple(self.choices.flatten().bincount(minlength=num_experts).tolist())


def workspace_shapes(tokens: int, top_k: int, hidden: int, inner: int) -> dict[str, tuple[int, int]]:
    """What a workspace consists of; see there."""
    rows = min(ROWS, rounded(tokens))
    return {
        "tokens": (tokens, hidden),  # of the group
        "outputs": (tokens * top_k, hidden),  # one for each token and choice, sorted by expert
        "gathered": (rows, hidden),  # what goes into an expert
        "result": (rows, hidden),  # what comes out
        "inside": (rows, inner),
        "gated": (rows, inner),  # at most; half of it where gate and up lie side by side
    }


def workspace_bytes(tokens: int, top_k: int, hidden: int, inner: int, item: int) -> int:
    """Bytes of a workspace for numbers of `item` bytes."""
    return item * sum(prod(shape) for shape in workspace_shapes(tokens, top_k, hidden, inner).values())


class Workspace:
    """Memory for one expert phase at a time.

    `tokens`: of the largest group. `hidden`, `inner`: the widths of a token outside of an expert and
    inside (gate and up side by side).
    """

    def __init__(self, tokens: int, top_k: int, hidden: int, inner: int, dtype: torch.dtype) -> None:
        shapes = workspace_shapes(tokens, top_k, hidden, inner)
        self.tokens, self.outputs, self.gathered, self.result, self.inside, self.gated = (
            allocate(prod(shape) * dtype.itemsize).view(dtype).view(shape) for shape in shapes.values()
        )


class ExpertPhase:
    """One layer's experts over one group's tokens: `compute` each used expert, then `outputs`."""

    def __init__(self, calls: Sequence[ExpertsCall], workspace: Workspace) -> None:
        self._module: Any = calls[0].module
        self._space = workspace
        self._sizes = [len(call.hidden) for call in calls]
        self._hidden = workspace.tokens[: sum(self._sizes)]
        torch.cat([call.hidden for call in calls], out=self._hidden)
        self._weights = torch.cat([call.weights for call in calls])
        choices = torch.cat([call.choices for call in calls])
        experts, order = choices.flatten().sort(stable=True)
        self._tokens = order // choices.shape[1]  # whose output each is, sorted by expert
        self._places = torch.empty_like(order)  # where the output of each token's choice is
        self._places[order] = torch.arange(len(order), device=order.device)
        self._bounds = torch.searchsorted(experts, torch.arange(int(experts[-1]) + 2, device=order.device)).tolist()

    def compute(self, expert: int, views: Views) -> None:
        """One expert over all of its tokens; `views` are its parameters by their own names."""
        for begin, end in pieces(self._bounds[expert], self._bounds[expert + 1], ROWS):
            count = end - begin
            torch.index_select(self._hidden, 0, self._tokens[begin:end], out=self._space.gathered[:count])
            outputs = self._space.outputs[begin:end]
            if rounded(count) == count:
                expert_forward(self._module, views, self._space, outputs)
            else:  # rows beyond hold what was there before; nobody looks at what becomes of them
                expert_forward(self._module, views, self._space, self._space.result[: rounded(count)])
                outputs.copy_(self._space.result[:count])

    def outputs(self) -> tuple[torch.Tensor, ...]:
        """The combined output [T, H] of each call, in order; good until the next phase begins."""
        top_k = self._weights.shape[1]
        for begin, end in pieces(0, len(self._hidden), SUMMED):
            outputs = self._space.outputs.index_select(0, self._places[begin * top_k : end * top_k])
            weights = self._weights[begin:end].unsqueeze(-1)
            self._hidden[begin:end] = (outputs.view(-1, top_k, outputs.shape[1]) * weights).sum(dim=1)
        return torch.split(self._hidden, self._sizes)


def pieces(begin: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """The range in pieces of `size`, and what is left."""
    yield from ((start, min(start + size, end)) for start in range(begin, end, size))


def rounded(rows: int) -> int:
    """Rows of the product for so many tokens."""
    return -(-rows // STEP) * STEP


def expert_forward(module: Any, views: Views, space: Workspace, out: torch.Tensor) -> None:
    """One expert over the first tokens gathered in `space`, into `out`, by the flags that the module carries."""
    count = len(out)
    tokens = space.gathered[:count]
    up = "gate_up_proj" if module.has_gate else "up_proj"
    inside = first(space.inside, count, views[up].shape[-1 if module.is_transposed else 0])
    gated = first(space.gated, count, views["down_proj"].shape[-2 if module.is_transposed else -1])
    project(tokens, views[up], views.get(f"{up}_bias"), module.is_transposed, inside)
    for begin, end in pieces(0, count, GATED):
        apply_gate(module, inside[begin:end], gated[begin:end])
    project(gated, views["down_proj"], views.get("down_proj_bias"), module.is_transposed, out)
    if getattr(module, "has_post_expert_norm", False):
        out.copy_(module.post_expert_norm(out))


def apply_gate(module: Any, inside: torch.Tensor, out: torch.Tensor) -> None:
    """What comes between an expert's two products."""
    if not module.has_gate:
        out.copy_(module.act_fn(inside))
    elif type(module)._apply_gate is _default_apply_gate:  # the same, without a copy
        gate, up = inside.chunk(2, dim=-1)
        torch.mul(module.act_fn(gate), up, out=out)
    else:
        out.copy_(module._apply_gate(inside))


def first(memory: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A matrix without gaps at the beginning of a larger one's memory."""
    return memory.view(-1)[: rows * columns].view(rows, columns)


def project(
    tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, is_transposed: bool, out: torch.Tensor
) -> None:
    """A linear map into `out`; its weight is [out, in], or [in, out] where the model keeps it transposed."""
    matrix = weight if is_transposed else weight.t()
    if bias is None:
        torch.mm(tokens, matrix, out=out)
    else:
        torch.addmm(bias, tokens, matrix, out=out)
