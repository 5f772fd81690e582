"""What the operations of the compute lane do, and those of the cores on experts, on torch."""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch

from klotski.core import Block
from klotski.model import ExpertPhase, GenerationBatch, Shell, Workspace
from klotski.pipeline import Batch
from klotski.weights.store import BlockStore

__all__ = ["TorchWorker"]


class TorchWorker:
    """Binds arriving blocks to the shell, and computes a group's experts; see `pipeline.Worker`.

    `views_below`: the parameters of a block that lies in CPU memory below the device.
    """

    def __init__(
        self,
        shell: Shell,
        store: BlockStore,
        workspace: Workspace,
        views_below: Callable[[Block], Mapping[str, torch.Tensor]],
    ) -> None:
        self._workspace = workspace
        self._shell = shell
        self._store = store
        self._views_below = views_below
        self._group: Sequence[GenerationBatch] = ()
        self._phase: ExpertPhase | None = None

    def enter(self, layer: int) -> None:
        """The layer's dense part is here: make the model use it."""
        self._shell.bind(self._store.views(Block(layer)))

    def gather(self, layer: int, group: Sequence[Batch], below: Sequence[int]) -> None:
        """Sort the tokens of all batches by the experts that they chose; those of experts `below` go there."""
        self._group = cast("Sequence[GenerationBatch]", group)
        heard = [batch.routing.counts for batch in self._group if batch.routing is not None]
        counts = [sum(each) for each in zip(*heard, strict=True)]
        calls = [call for batch in self._group for call in batch.calls]
        side_by_side = [expert for stack in self._store.stacks(layer) for expert in stack.experts]
        self._phase = ExpertPhase(calls, self._workspace, counts, side_by_side, below)

    def compute(self, layer: int, expert: int) -> None:
        """Compute one expert over its tokens."""
        assert self._phase is not None, "experts are gathered before they are computed"
        self._phase.compute(expert, own_names(self._store.views(Block(layer, expert))))

    def compute_together(self, layer: int, experts: Sequence[int]) -> None:
        """Compute several experts that stay, in as few products as there are stacks of them; see `ExpertPhase`."""
        assert self._phase is not None, "experts are gathered before they are computed"
        alone = set(experts)
        for stack in self._store.stacks(layer):
            self._phase.compute_stack(stack.experts, own_names(stack.views))
            alone -= set(stack.experts)
        for expert in sorted(alone):
            self.compute(layer, expert)

    def compute_below(self, layer: int, expert: int) -> None:
        """Compute one expert over its tokens where it lies in CPU memory, on any thread."""
        assert self._phase is not None, "experts are gathered before they are computed"
        with torch.inference_mode():  # which is each thread's own
            self._phase.compute_below(expert, own_names(self._views_below(Block(layer, expert))))

    def answer(self, layer: int) -> None:
        """Bring back what came of all experts that were computed below."""
        assert self._phase is not None, "experts are gathered before they are computed"
        self._phase.answer()

    def combine(self, layer: int) -> None:
        """Sum the experts' outputs and hand each batch its own."""
        assert self._phase is not None, "experts are gathered before they are combined"
        answers = iter(self._phase.outputs())
        for batch in self._group:
            batch.answers = [next(answers) for _ in batch.calls]
        self._phase = None

    def score(self, batches: Sequence[Batch]) -> None:
        """Give each of these batches the scores of its next tokens."""
        group = cast("Sequence[GenerationBatch]", batches)
        asked = [batch.last for batch in group if batch.last is not None]
        rows = [hidden.reshape(-1, hidden.shape[-1]) for hidden in asked]
        scores = torch.split(self._shell.score(torch.cat(rows)), [len(each) for each in rows])
        for batch, hidden, part in zip(group, asked, scores, strict=True):
            batch.scores = part.view(*hidden.shape[:-1], -1)


def own_names(views: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters by the names that the module of experts itself has for them."""
    return {name.rpartition(".")[2]: view for name, view in views.items()}
