"""A model opened as a config says."""

from pathlib import Path

import torch

from klotski.model import OpenModel, open_model
from klotski.schema import DType, RunConfig

__all__ = ["open_for"]

DTYPES = {DType.auto: None, DType.float32: torch.float32, DType.bfloat16: torch.bfloat16}


def open_for(config: RunConfig, folder: Path, *, shape_only: bool, cache_blocking: bool) -> OpenModel:
    """Open the model in a folder. `shape_only`: no weights are looked for. `cache_blocking`: see `Device`."""
    dtype = DTYPES[config.model.dtype]
    return open_model(folder, dtype, is_dummy=shape_only, cache_blocking=cache_blocking)
