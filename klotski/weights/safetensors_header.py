"""The header of a safetensors file, read with suspicion.

The format: eight bytes of header length (little endian), a JSON object of that length, then the
tensors' bytes without gaps. The `safetensors` library does not tell where in the file a tensor
lies, which is all that reading in place needs.
Source: https://huggingface.co/docs/safetensors/index#format
"""

from math import prod
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from klotski.errors import CheckpointError

__all__ = ["StoredTensor", "read_header"]

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
LARGEST_HEADER = 100_000_000  # the reference implementation's own limit


class StoredTensor(NamedTuple):
    """A tensor's place in its file: `nbytes` from `offset`, row-major."""

    file: Path
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Where each tensor of a file lies.

    Raises:
        CheckpointError: the file is missing, truncated, or its header contradicts itself.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(LARGEST_HEADER, size - 8):
                raise CheckpointError(f"{file} is truncated or not a safetensors file; fetch it again")
            header = msgspec.json.decode(stream.read(length), type=dict[str, msgspec.Raw])
            header.pop("__metadata__", None)
            entries = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in header.items()}
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing; fetch it again") from error
    except OSError as error:
        raise CheckpointError(f"{file} could not be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{file} has a damaged header ({error}); fetch it again") from error
    data = 8 + length
    tensors = {name: stored(file, name, entry, data) for name, entry in entries.items()}
    check_gapless(file, tensors, data, size)
    return tensors


def stored(file: Path, name: str, entry: _Entry, data: int) -> StoredTensor:
    """The place of one header entry, whose offsets count from `data`, if shape and length agree."""
    begin, end = entry.data_offsets
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        raise CheckpointError(
            f"{file}: {name} has the type {entry.dtype!r}, which is not among {', '.join(DTYPES)}; "
            "the header is damaged, or the checkpoint is quantized in a way that is not supported"
        )
    if min(entry.shape, default=0) < 0 or end - begin != prod(entry.shape) * dtype.itemsize:
        raise CheckpointError(
            f"{file} has a damaged header: {name} of shape {entry.shape} does not fill its bytes; fetch it again"
        )
    return StoredTensor(file, data + begin, end - begin, tuple(entry.shape), dtype)


def check_gapless(file: Path, tensors: dict[str, StoredTensor], data: int, size: int) -> None:
    """Refuse a file whose tensors do not lie side by side from `data` to its end."""
    position = data
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if tensor.offset != position:
            raise CheckpointError(f"{file} has a damaged header: {name} is not where it should lie; fetch it again")
        position += tensor.nbytes
    if position > size:
        raise CheckpointError(f"{file} is truncated: {size} bytes of {position} are there; fetch it again")
    if position < size:
        raise CheckpointError(f"{file} has {size - position} bytes too many; fetch it again")
