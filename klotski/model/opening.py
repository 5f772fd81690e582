"""A checkpoint opened: the shell, the layout of every block, the tokenizer. No weights are read."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig

from klotski.core import FIXED, Block
from klotski.errors import first_line, panics_are_errors
from klotski.model.config import read_config
from klotski.model.generation import read_decoding
from klotski.model.naming import locate
from klotski.model.rope import context_length
from klotski.model.sampling import Decoding
from klotski.model.shell import Shell
from klotski.weights.checkpoint import Checkpoint
from klotski.weights.dummy import lay_out_dummy
from klotski.weights.finding import has_adapter
from klotski.weights.layout import BlockLayout, lay_out
from klotski.weights.reader import largest_staging

__all__ = ["OpenModel", "open_model"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenModel:
    """What a run needs to know of a model before it has memory for it."""

    folder: Path
    config: PreTrainedConfig
    shell: Shell
    fixed: BlockLayout
    layouts: dict[Block, BlockLayout]
    tokenizer: Any | None
    decoding: Decoding

    @property
    def staging(self) -> int:
        """Bytes of the staging buffer that a reader of this model needs."""
        return largest_staging([self.fixed, *self.layouts.values()])

    @property
    def context(self) -> int | None:
        """The longest sequence that the model takes."""
        return context_length(self.config)


def open_model(
    folder: Path, dtype: torch.dtype | None, *, is_dummy: bool = False, cache_blocking: bool = True
) -> OpenModel:
    """Open a checkpoint to be computed in `dtype` (None: the checkpoint's own).

    Of a dummy only the config is looked at: its layouts have no files. `cache_blocking`: see `Shell`.

    Raises:
        CheckpointError: a file is missing or damaged.
        ModelError: the model is not one that can be streamed.
    """
    config = read_config(folder)
    if has_adapter(folder):
        logger.warning("%s: the adapter beside the base model's weights is not applied", folder)
    if is_dummy:
        shell = Shell(config, dtype or said_dtype(config) or torch.bfloat16, cache_blocking=cache_blocking)
        layouts = {block: lay_out_dummy(block, specs) for block, specs in shell.specs.items()}
    else:
        checkpoint = Checkpoint(folder)
        dtype = dtype or said_dtype(config) or commonest_dtype(checkpoint)
        shell = Shell(config, dtype, cache_blocking=cache_blocking)
        parts = locate(shell, checkpoint)
        layouts = {block: lay_out(block, specs, parts, checkpoint) for block, specs in shell.specs.items()}
    fixed = layouts.pop(FIXED)
    decoding = read_decoding(folder, config)
    return OpenModel(folder, config, shell, fixed, layouts, read_tokenizer(folder), decoding)


def said_dtype(config: PreTrainedConfig) -> torch.dtype | None:
    """What the config says that the weights are in."""
    said = config.dtype or getattr(config.get_text_config(), "dtype", None)
    return said if isinstance(said, torch.dtype) else None


def commonest_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """What most of the checkpoint's bytes are in."""
    weight: dict[torch.dtype, int] = {}
    for tensor in checkpoint.tensors.values():
        weight[tensor.dtype] = weight.get(tensor.dtype, 0) + tensor.nbytes
    return max(weight, key=lambda dtype: weight[dtype])


def read_tokenizer(folder: Path) -> Any | None:
    """The checkpoint's tokenizer; None: it has none, or one that cannot be read, which is no matter to token ids."""
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    if not any((folder / name).is_file() for name in names):
        return None
    try:
        with panics_are_errors():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a tokenizer's own code raises whatever its files lead to
        logger.warning(
            "%s: the tokenizer cannot be read (%s), so that only token ids can be run", folder, first_line(error)
        )
        return None
