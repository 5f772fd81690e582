"""Where a checkpoint is: a folder, or a hub id and its place in the Hub's cache. No file of weights is opened."""

from pathlib import Path

from klotski.errors import CheckpointError

__all__ = ["INDEX", "SINGLE", "find_folder", "find_local", "has_weights", "resolve"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TEXTS = ("*.json", "*.model", "*.txt", "*.jinja")  # all that is not weights


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a checkpoint, or what is left of one, and not a config alone."""
    return any(folder.glob("*.safetensors*"))


def find_folder(path: str) -> Path | None:
    """The folder that a path names, itself or by the config in it; None: it is no file here."""
    folder = Path(path).expanduser()
    if folder.is_file():
        return folder.parent
    return folder if folder.is_dir() else None


def find_local(path: str) -> Path | None:
    """The folder of a checkpoint that is on this machine already: a folder, or whole in the Hub's cache; or None."""
    if folder := find_folder(path):
        return folder if has_weights(folder) else None
    from huggingface_hub import snapshot_download

    try:
        cached = Path(snapshot_download(path, local_files_only=True))
    except Exception:  # the Hub's client raises whatever it likes for what is not there
        return None
    return cached if has_weights(cached) else None


def resolve(path: str, *, with_weights: bool = True, made_by: str = "") -> Path:
    """The folder of a checkpoint: a local folder, or that of its config, or a hub id's snapshot in the Hub's cache.

    `made_by`: the command that would write it.

    Raises:
        CheckpointError: it is neither, and could not be fetched.
    """
    if folder := find_folder(path):
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
