"""The arithmetic of a layer's experts over the tokens of a whole group.

The tokens of all batches that chose an expert are gathered into one matrix and multiplied once, in
pieces of `ROWS`, which costs no speed and bounds the memory inside an expert. Each token's K
outputs are kept apart until all are there, and summed in the order of its own choices: the sum
does not depend on the order in which experts were computed, nor on how tokens were spread over
batches. The products themselves may: a matrix library picks its kernel by the number of rows, and
the last bits follow the kernel.

An expert's outputs begin at a multiple of `STEP` rows, so that products of rounded size need no
copy to their place. Where a device begins products more slowly than it does small ones, experts whose
parameters lie in one stack are multiplied at once, up to `ROWS` rows at a time. The tokens of experts that are
computed elsewhere, in CPU memory below a device, lie behind all others, leave as one, and come back as one.

Everything large lies in a `Workspace` that is allocated once: on a virtual machine, fresh memory
costs more than the arithmetic of a small expert.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import embedding_bag, grouped_mm
from transformers.integrations.moe import _default_apply_gate

from klotski.core import STEP, product_rows
from klotski.lanes.cuda import Landing, bring, to_device
from klotski.weights.memory import allocate, whole_pages

__all__ = ["ExpertPhase", "ExpertsCall", "Workspace", "WorkspaceShape", "count_tokens"]

ROWS = 768  # tokens of one product, at most; more are no faster
SUMMED = 512  # tokens whose outputs are summed at a time: what comes between stays in the cache

Views = Mapping[str, torch.Tensor]


class ExpertsCall(NamedTuple):
    """The question of a batch, or of a slice of one: `hidden` [T, H], `choices` (experts) and `weights` [T, K]."""

    module: nn.Module
    hidden: torch.Tensor
    choices: torch.Tensor
    weights: torch.Tensor


class WorkspaceShape(NamedTuple):
    """What the size of a workspace follows from.

    `hidden`, `inner`: the widths of a token outside of an expert and inside (gate and up side by side).
    """

    experts: int  # of a layer, at most
    top_k: int
    hidden: int
    inner: int

    def parts(self, tokens: int) -> dict[str, tuple[int, int]]:
        """The matrices, for groups of up to `tokens`."""
        rows = min(ROWS, product_rows(tokens))
        choices = tokens * self.top_k
        return {
            "tokens": (tokens, self.hidden),  # of the group
            "outputs": (choices + self.experts * (STEP - 1), self.hidden),  # of each token and choice, by expert
            "gathered": (rows, self.hidden),  # what goes into an expert
            "inside": (rows, self.inner),
            "gated": (rows, self.inner),  # at most; half of it where gate and up lie side by side
        }

    def nbytes(self, tokens: int, item: int) -> int:
        """Bytes of a workspace for numbers of `item` bytes."""
        return item * sum(prod(shape) for shape in self.parts(tokens).values())


class Workspace:
    """Memory for one expert phase at a time, of groups of up to `tokens`."""

    def __init__(
        self,
        shape: WorkspaceShape,
        tokens: int,
        dtype: torch.dtype,
        allocate: Callable[[int], torch.Tensor] = allocate,
    ) -> None:
        self._shape = shape
        self.tokens, self.outputs, self.gathered, self.inside, self.gated = (
            allocate(prod(part) * dtype.itemsize).view(dtype).view(part) for part in shape.parts(tokens).values()
        )

    def spare(self, tokens: int) -> torch.Tensor:
        """The memory (uint8, on a page boundary) that groups of up to so many tokens leave alone."""
        used = prod(self._shape.parts(tokens)["outputs"]) * self.outputs.itemsize
        return self.outputs.view(-1).view(torch.uint8)[whole_pages(used) :]


class ExpertPhase:
    """One layer's experts over one group's tokens: `compute` each used expert, or a stack of them, then `outputs`.

    `counts`: tokens of each expert, over all calls. The host knows them, so that no device has to be asked.
    `side_by_side`: experts whose outputs come first, in this order, as stacks of them need it. `below`: those that
    are computed in CPU memory, by `compute_below` on any thread, and then brought back by `answer`.
    """

    def __init__(
        self,
        calls: Sequence[ExpertsCall],
        workspace: Workspace,
        counts: Sequence[int],
        side_by_side: Sequence[int] = (),
        below: Sequence[int] = (),
    ) -> None:
        self._module: Any = calls[0].module
        self._space = workspace
        self._sizes = [len(call.hidden) for call in calls]
        self._hidden = workspace.tokens[: sum(self._sizes)]
        torch.cat([call.hidden for call in calls], out=self._hidden)
        self._weights = torch.cat([call.weights for call in calls])
        choices = torch.cat([call.choices for call in calls])
        experts, order = choices.flatten().sort(stable=True)
        self._rows = [count if expert in below else product_rows(count) for expert, count in enumerate(counts)]
        self._starts = starts_of(self._rows, side_by_side, below)
        bounds = accumulate(counts, initial=0)  # of each expert's choices, as they are sorted
        shifts = torch.tensor([start - bound for start, bound in zip(self._starts, bounds, strict=False)])
        places = to_device(shifts, order.device)[experts] + torch.arange(len(order), device=order.device)
        self._places = torch.empty_like(order)  # where the output of each token's choice is
        self._places[order] = places
        self._places = self._places.view(choices.shape)
        self._tokens = order.new_zeros(sum(self._rows))  # whose output each row is; of rows beyond, any token's
        self._tokens[places] = order // choices.shape[1]
        self._below = sum(self._rows) - sum(counts[expert] for expert in below)  # where the rows of these begin
        self._asked: Landing | None = None
        self._answers: torch.Tensor | None = None
        if below:
            self._leave()

    def compute(self, expert: int, views: Views) -> None:
        """One expert over all of its tokens; `views` are its parameters by their own names."""
        begin = self._starts[expert]
        # A token may choose an expert twice (a hash router does): there may be more rows than tokens.
        for piece in even_pieces(begin, begin + self._rows[expert], len(self._space.gathered)):
            tokens, out = self._gather(*piece)
            expert_forward(self._module, views, tokens, out, self._space)
            apply_norm(self._module, out)

    def compute_stack(self, experts: Sequence[int], views: Views) -> None:
        """Experts that were to be side by side, each over all of its tokens; `views` are their parameters [R, ...]."""
        for first, last in runs([self._rows[expert] for expert in experts], min(ROWS, len(self._space.gathered))):
            rows = [self._rows[expert] for expert in experts[first:last]]
            if not any(rows):
                continue
            if len(rows) == 1:
                self.compute(experts[first], {name: view[first] for name, view in views.items()})
            else:
                begin = self._starts[experts[first]]
                some = {name: view[first:last] for name, view in views.items()}
                tokens, out = self._gather(begin, begin + sum(rows))
                stack_forward(self._module, some, rows, tokens, out, self._space)
                apply_norm(self._module, out)

    def compute_below(self, expert: int, views: Views) -> None:
        """One expert over all of its tokens, in CPU memory, where its parameters are."""
        assert self._asked is not None and self._answers is not None, "nothing was to be computed below"
        begin = self._starts[expert] - self._below
        tokens, answers = self._asked.numbers(), self._answers
        for first, last in even_pieces(begin, begin + self._rows[expert], ROWS):
            few = last - first < STEP  # cores are sooner done with fewer rows, and these are not many numbers
            some = tokens.new_zeros((last - first if few else product_rows(last - first), tokens.shape[1]))
            some[: last - first] = tokens[first:last]
            out = torch.empty_like(some)
            expert_forward(self._module, views, some, out)
            answers[first:last] = out[: last - first]

    def answer(self) -> None:
        """Bring back what came of the experts below, all of which have been computed."""
        assert self._answers is not None, "nothing was computed below"
        out = self._space.outputs[self._below : sum(self._rows)]
        bring(self._answers, out)
        apply_norm(self._module, out)
        self._asked = self._answers = None

    def _leave(self) -> None:
        """Send the tokens of experts below on their way, by the memory that what comes of them will return to."""
        end = sum(self._rows)
        tokens = self._space.outputs[self._below : end]
        torch.index_select(self._hidden, 0, self._tokens[self._below : end], out=tokens)
        self._asked = Landing(tokens)
        self._answers = torch.empty(tokens.shape, dtype=tokens.dtype)

    def _gather(self, begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens of some rows, and where their outputs belong."""
        tokens = self._space.gathered[: end - begin]
        torch.index_select(self._hidden, 0, self._tokens[begin:end], out=tokens)
        return tokens, self._space.outputs[begin:end]

    def outputs(self) -> tuple[torch.Tensor, ...]:
        """The combined output [T, H] of each call, in order; good until the next phase begins."""
        outputs = self._space.outputs[: sum(self._rows)]  # what lies behind may be lent to blocks
        for begin, end in pieces(0, len(self._hidden), SUMMED):
            weights = self._weights[begin:end].to(outputs.dtype)
            places = self._places[begin:end]
            self._hidden[begin:end] = embedding_bag(places, outputs, mode="sum", per_sample_weights=weights)
        return torch.split(self._hidden, self._sizes)


def count_tokens(calls: Sequence[ExpertsCall], choices: NDArray[Any]) -> tuple[int, ...]:
    """Tokens of each expert, over all calls, by their `choices` as the host knows them."""
    experts: Any = calls[0].module
    return tuple(np.bincount(choices.ravel(), minlength=experts.num_experts).tolist())


def pieces(begin: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """The range in pieces of `size`, and what is left."""
    yield from ((start, min(start + size, end)) for start in range(begin, end, size))


def even_pieces(begin: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """The range in as few pieces of at most `size` as there can be, of about the same size.

    A last piece of a few tokens would take a pass over all weights for itself.
    """
    count = -(-(end - begin) // size)
    yield from pieces(begin, end, product_rows(-(-(end - begin) // max(1, count))))


def runs(rows: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of neighbours that have at most so many rows together; one that has more is alone."""
    begin, total = 0, 0
    for index, count in enumerate(rows):
        if total + count > most and index > begin:
            yield begin, index
            begin, total = index, 0
        total += count
    yield begin, len(rows)


def starts_of(rows: Sequence[int], first: Sequence[int], last: Sequence[int]) -> list[int]:
    """Where each expert's rows begin: those of `first` in their order, the others in theirs, and those of `last`."""
    starts = [0] * len(rows)
    begin = 0
    others = set(range(len(rows))).difference(first, last)
    for expert in (*first, *sorted(others), *last):
        starts[expert] = begin
        begin += rows[expert]
    return starts


def expert_forward(
    module: Any, views: Views, tokens: torch.Tensor, out: torch.Tensor, space: Workspace | None = None
) -> None:
    """One expert over `tokens`, into `out`, by the flags that the module carries.

    `space`: memory for what comes between its products; None: fresh memory.
    """
    up = name_of_up(module)
    wide = views[up].shape[-1 if module.is_transposed else -2]
    narrow = views["down_proj"].shape[-2 if module.is_transposed else -1]
    inside = between(space.inside if space else None, tokens, wide)
    gated = between(space.gated if space else None, tokens, narrow)
    project(tokens, views[up], views.get(f"{up}_bias"), module.is_transposed, inside)
    apply_gate(module, inside, gated)
    project(gated, views["down_proj"], views.get("down_proj_bias"), module.is_transposed, out)


def stack_forward(
    module: Any, views: Views, rows: Sequence[int], tokens: torch.Tensor, out: torch.Tensor, space: Workspace
) -> None:
    """The same for neighbours of a stack, so many rows each, whose parameters are [R, ...]."""
    up, is_transposed = name_of_up(module), module.is_transposed
    ends = to_device(torch.tensor(list(accumulate(rows)), dtype=torch.int32), out.device)
    gated = between(space.gated, tokens, views["down_proj"].shape[-2 if is_transposed else -1])
    inside = project_stack(tokens, views[up], views.get(f"{up}_bias"), is_transposed, rows, ends)
    apply_gate(module, inside, gated)
    out.copy_(project_stack(gated, views["down_proj"], views.get("down_proj_bias"), is_transposed, rows, ends))


def name_of_up(module: Any) -> str:
    """The parameter of an expert's first product."""
    return "gate_up_proj" if module.has_gate else "up_proj"


def apply_norm(module: Any, out: torch.Tensor) -> None:
    """What comes behind an expert's second product."""
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


def between(memory: torch.Tensor | None, tokens: torch.Tensor, width: int) -> torch.Tensor:
    """A matrix without gaps, so many numbers for each token, at the beginning of a larger one's memory, or of fresh."""
    if memory is None:
        return tokens.new_empty((len(tokens), width))
    return memory.view(-1)[: len(tokens) * width].view(len(tokens), width)


def project(
    tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, is_transposed: bool, out: torch.Tensor
) -> None:
    """A linear map into `out`; its weight is [out, in], or [in, out] where the model keeps it transposed."""
    matrix = weight if is_transposed else weight.t()
    if bias is None:
        torch.mm(tokens, matrix, out=out)
    else:
        torch.addmm(bias, tokens, matrix, out=out)


def project_stack(
    tokens: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    is_transposed: bool,
    rows: Sequence[int],
    ends: torch.Tensor,
) -> torch.Tensor:
    """Linear maps of neighbours, [R, out, in] or [R, in, out], each over its rows; `ends`: where these end."""
    out = grouped_mm(tokens, weight if is_transposed else weight.transpose(-2, -1), offs=ends)
    if bias is not None:
        repeats = to_device(torch.tensor(rows), out.device)
        out.add_(torch.repeat_interleave(bias, repeats, dim=0, output_size=len(out)))
    return out
