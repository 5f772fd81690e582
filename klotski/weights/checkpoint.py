"""A checkpoint in the Hub's layout: one safetensors file, or shards with an index."""

from pathlib import Path

import msgspec

from klotski.errors import CheckpointError
from klotski.weights.finding import INDEX, SINGLE
from klotski.weights.safetensors_header import StoredTensor, read_header

__all__ = ["Checkpoint", "StoredTensor"]


class Checkpoint:
    """The tensors of a folder by name. Reads headers only.

    Raises:
        CheckpointError: a file is missing or damaged; the message names it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if (folder / INDEX).exists():
            self.tensors = read_shards(folder)
        elif (folder / SINGLE).exists():
            self.tensors = read_header(folder / SINGLE)
        else:
            raise CheckpointError(f"{folder} has neither {SINGLE} nor {INDEX}")

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def read_shards(folder: Path) -> dict[str, StoredTensor]:
    """The tensors that the index promises, each from the shard that it names."""
    try:
        index = msgspec.json.decode((folder / INDEX).read_bytes(), type=_Index)
    except msgspec.DecodeError as error:
        raise CheckpointError(f"{folder / INDEX} is damaged ({error}); fetch it again") from error
    shards = {name: read_header(folder / name) for name in sorted(set(index.weight_map.values()))}
    tensors = {}
    for tensor, shard in index.weight_map.items():
        if tensor not in shards[shard]:
            raise CheckpointError(
                f"{folder / shard} does not hold {tensor}, which {INDEX} says it does; fetch it again"
            )
        tensors[tensor] = shards[shard][tensor]
    return tensors
