"""Where a checkpoint is, and which files hold its weights: found as transformers finds them. No weights are opened.

A checkpoint is a folder, or a hub id and its place in the Hub's cache. Its weights are those of `model.safetensors`,
or else of the shards that `model.safetensors.index.json` names, unless `transformers_weights` in `config.json` names
another file. Source: `transformers.modeling_utils._get_resolved_checkpoint_files`.
"""

import json
from pathlib import Path
from typing import Any

import msgspec

from klotski.errors import CheckpointError, first_line
from klotski.units import user_path
from klotski.weights.quantization import refuse_quantized

__all__ = [
    "find_folder",
    "find_local",
    "has_adapter",
    "has_weights",
    "is_whole",
    "read_config_file",
    "resolve",
    "weight_files",
]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
OTHERS = ("pytorch_model*.bin*", "*.gguf", "*.pth", "*.pt", "*.npz")  # weights in formats that are not read here
TEXTS = ("*.json", "*.model", "*.txt", "*.jinja")  # all that is not weights
NOT_NEEDED = ("*/*.json", "*/*.model", "*/*.txt", "adapter_*")  # `original/` and the like; templates may lie deeper


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a checkpoint in any format, or what is left of one, and not a config alone."""
    return any(found for pattern in ("*.safetensors*", *OTHERS) for found in folder.glob(pattern))


def find_folder(path: str) -> Path | None:
    """The folder that a path names, itself or by the config in it; None: there is no such file here.

    Raises:
        CheckpointError: the system cannot tell.
    """
    folder = user_path(path)
    try:
        if folder.is_file():
            return folder.parent
        return folder if folder.is_dir() else None
    except OSError as error:  # a name that is too long, or a folder that may not be looked into
        raise CheckpointError(f"model.path={path} could not be read: {error.strerror}") from error


def find_local(path: str) -> Path | None:
    """The folder of a checkpoint that is on this machine already: a folder, or whole in the Hub's cache; or None."""
    if folder := find_folder(path):
        return folder if has_weights(folder) else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(path, "config.json")
    except HFValidationError:  # not a hub id either
        return None
    return Path(config).parent if isinstance(config, str) and is_whole(Path(config).parent) else None


def is_whole(folder: Path) -> bool:
    """Whether all files of a checkpoint's weights are in a folder, however they were fetched."""
    try:
        return all(file.is_file() for file in weight_files(folder))
    except CheckpointError:
        return False


def read_config_file(folder: Path) -> dict[str, Any]:
    """The content of `config.json`.

    Raises:
        CheckpointError: it is missing, or not a JSON object.
    """
    try:
        content = json.loads((folder / "config.json").read_bytes())  # with NaN and Infinity, as transformers reads it
    except FileNotFoundError as error:
        adapter = " but an adapter: merge it into its base model first" if has_adapter(folder) else ""
        raise CheckpointError(
            f"{folder} has no config.json{adapter}; it is not a checkpoint in the Hub's layout"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{folder / 'config.json'} could not be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / 'config.json'} is damaged ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{folder / 'config.json'} is damaged (it is not a JSON object); fetch it again")
    return content


def has_adapter(folder: Path) -> bool:
    """Whether a folder has an adapter (LoRA and the like), alone or beside its base model."""
    return (folder / "adapter_config.json").is_file()


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a checkpoint's weights, whether they are there or not.

    Raises:
        CheckpointError: there are none, or the index is damaged; the message names the file.
    """
    named = read_config_file(folder).get("transformers_weights") if (folder / "config.json").is_file() else None
    for name in (named,) if isinstance(named, str) else (SINGLE, INDEX):
        if (folder / name).is_file():
            return shards(folder / name) if name.endswith(".index.json") else [folder / name]
    if named:
        raise CheckpointError(f"{folder / str(named)}, which config.json names, is missing; fetch it again")
    if other := next((found for pattern in OTHERS for found in sorted(folder.glob(pattern))), None):
        raise CheckpointError(
            f"{other} is not in safetensors, the only format that can be streamed; "
            "save the checkpoint with transformers' save_pretrained, or fetch it in safetensors"
        )
    raise CheckpointError(f"{folder} has neither {SINGLE} nor {INDEX}")


def shards(index: Path) -> list[Path]:
    """The files that an index names; which tensor is in which, their own headers say."""
    try:
        names = msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values()
    except OSError as error:
        raise CheckpointError(f"{index} could not be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{index} is damaged ({error}); fetch it again") from error
    if not names:
        raise CheckpointError(f"{index} names no file of weights; fetch it again")
    return [index.parent / name for name in sorted(set(names))]


def resolve(path: str, *, with_weights: bool = True, made_by: str = "") -> Path:
    """The folder of a checkpoint: a local folder, or that of its config, or a hub id's snapshot in the Hub's cache.

    `with_weights`: they are fetched, if the checkpoint can be streamed. `made_by`: the command that would write it.

    Raises:
        CheckpointError: it is neither, or could not be fetched.
        ModelError: it is quantized; its weights have not been fetched.
    """
    if folder := find_folder(path):
        return folder
    try:
        return fetch(path, with_weights=with_weights)
    except NotFetchedError as error:
        if (local := find_local(path)) is not None:  # the Hub cannot be reached, and nothing that is needed is missing
            return local
        advice = f"`{made_by}` writes it" if made_by else "set it to the folder of a checkpoint, or to a hub id"
        raise CheckpointError(f"model.path={path} {error}; {advice}") from error


class NotFetchedError(Exception):
    """The Hub has not given a file; the message says why, as the rest of a sentence about `model.path`."""


def fetch(path: str, *, with_weights: bool) -> Path:
    """A snapshot with the files that are needed, and no others."""
    folder = download(path, [*TEXTS])
    refuse_quantized(folder, read_config_file(folder))
    if with_weights:
        named = read_config_file(folder).get("transformers_weights")
        download(path, [named if isinstance(named, str) else SINGLE])
        download(path, [file.name for file in weight_files(folder)])
    return folder


def download(path: str, patterns: list[str]) -> Path:
    """The Hub's snapshot, with the files that match.

    Raises:
        NotFetchedError: the Hub, or its client, refuses.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(path, allow_patterns=patterns, ignore_patterns=[*NOT_NEEDED]))
    except HFValidationError as error:
        raise NotFetchedError("is neither a folder nor a hub id") from error
    except Exception as error:  # the Hub's client raises whatever its transport does
        raise NotFetchedError(f"is not a folder here and could not be fetched ({first_line(error)})") from error
