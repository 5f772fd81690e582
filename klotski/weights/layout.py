"""Where each byte of a block comes from, and where in its slot it goes.

A slot holds a block's parameters one after the other in the model's own layout, so that a
parameter is a view of the slot. A `Segment` is a contiguous range of a file that fills a
contiguous range of the slot. Experts that lie apart on disk (`experts.3.w1.weight`) and experts
that lie fused (`gate_up_proj[3]`) both come out as segments; no checkpoint is rewritten.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch

from klotski.core import DENSE, Block
from klotski.errors import CheckpointError
from klotski.weights.checkpoint import Checkpoint, StoredTensor
from klotski.weights.memory import PAGE, whole_pages
from klotski.weights.requests import ReadRequest, Segment, cut_requests

__all__ = ["BlockLayout", "ParameterSpec", "Part", "Segment", "lay_out"]

ALIGNMENT = 64  # bytes; of a small parameter within its slot: one cache line, one AVX-512 register
FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}  # that hold weights as they are
LARGE = 16 * PAGE  # bytes of a parameter that is worth up to a page of padding, to be read in place


class ParameterSpec(NamedTuple):
    """A parameter (or saved buffer) of a block, as the model's code wants to see it.

    In the block of an expert, `shape` is that of the expert's part of the fused parameter.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class Part(NamedTuple):
    """What a tensor of the checkpoint contributes to a parameter of the model."""

    tensor: str
    expert: int | None = None  # None: to the parameter whole; else to that expert's part of it
    start: int = 0  # first row that it fills there


@dataclass(frozen=True)
class BlockLayout:
    """A block's parameters as views of a slot, and the requests that fill it."""

    block: Block
    views: dict[str, tuple[int, ParameterSpec]]  # parameter -> (offset in the slot, what lies there)
    requests: tuple[ReadRequest, ...]
    disk_bytes: int  # of the block in its files
    slot_bytes: int  # whole pages

    def views_of(self, memory: torch.Tensor) -> dict[str, torch.Tensor]:
        """The block's parameters by name, as views of a slot (uint8) that holds it."""
        return {
            name: memory[offset : offset + prod(spec.shape) * spec.dtype.itemsize].view(spec.dtype).view(spec.shape)
            for name, (offset, spec) in self.views.items()
        }


def lay_out(
    block: Block, specs: Sequence[ParameterSpec], parts: Mapping[str, Sequence[Part]], checkpoint: Checkpoint
) -> BlockLayout:
    """The layout of one block.

    Raises:
        CheckpointError: the checkpoint lacks a tensor, or has it in another shape.
    """
    views: dict[str, tuple[int, ParameterSpec]] = {}
    segments: list[Segment] = []
    position = 0
    for spec in specs:
        found = parameter_segments(block, spec, parts.get(spec.name, ()), checkpoint)
        size = prod(spec.shape) * spec.dtype.itemsize
        position = place(position, size, found[0] if found else None)
        views[spec.name] = (position, spec)
        segments += [segment._replace(slot_offset=position + segment.slot_offset) for segment in found]
        position += size
    disk_bytes = sum(segment.nbytes for segment in segments)
    return BlockLayout(block, views, cut_requests(segments), disk_bytes, whole_pages(position))


def place(position: int, size: int, first: Segment | None) -> int:
    """The offset in the slot, from `position` on, of a parameter of `size` bytes.

    A large one lies as many bytes past a page as its first segment does in its file.
    """
    if size < LARGE or first is None or not first.is_plain or first.offset % first.stored.itemsize:
        return whole(position, ALIGNMENT)
    return position + (first.offset - position) % PAGE


def whole(nbytes: int, unit: int) -> int:
    """`nbytes`, rounded up to whole units."""
    return -(-nbytes // unit) * unit


def parameter_segments(
    block: Block, spec: ParameterSpec, parts: Sequence[Part], checkpoint: Checkpoint
) -> list[Segment]:
    """What fills one parameter, with offsets from where it starts in the slot."""
    segments = []
    row_elements = prod(spec.shape[1:])
    wanted, filled = prod(spec.shape), 0
    for part in parts:
        if part.expert is not None and part.expert != block.expert:
            continue
        tensor = checkpoint.tensors[part.tensor]
        if spec.dtype.is_floating_point and tensor.dtype not in FLOATS:
            raise CheckpointError(
                f"{tensor.file}: {part.tensor} is stored as {str(tensor.dtype).removeprefix('torch.')}, so the weights "
                "are quantized; they cannot be streamed yet, use the unquantized checkpoint"
            )
        if part.expert is None and block.expert != DENSE:
            tensor = expert_slice(part.tensor, tensor, block.expert)
        if tensor.shape[1:] != spec.shape[1:]:
            raise CheckpointError(
                f"{tensor.file}: {part.tensor} has rows of shape {list(tensor.shape[1:])} where {spec.name} of {block} "
                f"needs {list(spec.shape[1:])}; config.json and the weights do not belong together"
            )
        start = part.start * row_elements * spec.dtype.itemsize
        segments.append(Segment(tensor.file, tensor.offset, tensor.nbytes, tensor.dtype, start, spec.dtype))
        filled += tensor.nbytes // tensor.dtype.itemsize
    if filled == 0 and wanted:
        raise CheckpointError(f"{checkpoint.folder} has no tensor for {spec.name} of {block}; is a shard missing?")
    if filled != wanted:
        names = ", ".join(part.tensor for part in parts if part.expert in (None, block.expert))
        raise CheckpointError(
            f"{checkpoint.folder}: {names} holds {filled} numbers where {spec.name} of {block} "
            f"needs {list(spec.shape)}; config.json and the weights do not belong together"
        )
    return segments


def expert_slice(name: str, tensor: StoredTensor, expert: int) -> StoredTensor:
    """One expert's range of a tensor that holds all of a layer, fused along its first dimension."""
    if expert >= tensor.shape[0]:
        raise CheckpointError(f"{tensor.file}: {name} has no expert {expert}; config.json asks for one")
    nbytes = tensor.nbytes // tensor.shape[0]
    return tensor._replace(offset=tensor.offset + expert * nbytes, nbytes=nbytes, shape=tensor.shape[1:])
