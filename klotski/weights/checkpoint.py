"""A checkpoint in the Hub's layout: one safetensors file, or shards with an index."""

from pathlib import Path

import msgspec

from klotski.errors import CheckpointError
from klotski.weights.safetensors_header import StoredTensor, read_header

__all__ = ["Checkpoint", "StoredTensor", "find_local", "has_weights", "resolve"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TEXTS = ("*.json", "*.model", "*.txt", "*.jinja")  # all that is not weights


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


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a checkpoint, and not a config alone."""
    return (folder / SINGLE).exists() or (folder / INDEX).exists()


def find_local(path: str) -> Path | None:
    """The folder of a checkpoint that is on this machine already: a folder, or whole in the Hub's cache; or None."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        cached = Path(snapshot_download(path, local_files_only=True))
    except Exception:  # the Hub's client raises whatever it likes for what is not there
        return None
    return cached if has_weights(cached) else None


def resolve(path: str, *, with_weights: bool = True, made_by: str = "") -> Path:
    """The folder of a checkpoint: a local folder, or a hub id's snapshot in the Hub's cache.

    `made_by`: the command that would write it.

    Raises:
        CheckpointError: it is neither, and could not be fetched.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    advice = f"`{made_by}` writes it" if made_by else "set it to the folder of a checkpoint, or to a hub id"
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(path, allow_patterns=[*TEXTS, *(["*.safetensors"] if with_weights else [])]))
    except HFValidationError as error:
        raise CheckpointError(f"model.path={path} is neither a folder nor a hub id; {advice}") from error
    except Exception as error:  # the Hub's client raises whatever its transport does
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"model.path={path} is not a folder here and could not be fetched ({reason}); {advice}"
        ) from error
