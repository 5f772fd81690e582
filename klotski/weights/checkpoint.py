"""A checkpoint in the Hub's layout: one safetensors file, or shards with an index."""

from collections.abc import Iterator
from pathlib import Path

from klotski.weights.finding import weight_files
from klotski.weights.safetensors_header import StoredTensor, read_header

__all__ = ["Checkpoint", "StoredTensor", "are_equal"]

PIECE_BYTES = 16 << 20  # of each of two tensors that are compared


class Checkpoint:
    """The tensors of a folder by name, as the headers of its files have them. Reads headers only.

    What an index says of tensors is not relied on: it may be left over from an earlier save.

    Raises:
        CheckpointError: a file is missing or damaged; the message names it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        for file in weight_files(folder):
            self.tensors |= read_header(file)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def are_equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors hold the same values; reads both, up to the first difference."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return all(piece == twin for piece, twin in zip(pieces(one), pieces(other), strict=True))


def pieces(tensor: StoredTensor) -> Iterator[bytes]:
    """The bytes of a tensor, some at a time."""
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.offset)
        for begin in range(0, tensor.nbytes, PIECE_BYTES):
            yield stream.read(min(PIECE_BYTES, tensor.nbytes - begin))
