"""Tensors of a checkpoint that a model does not use.

Most are harmless: the head of multi-token prediction, a vision tower. Those of quantized weights are not: without
their scales, numbers of 8 bits would be taken for the weights themselves.
"""

import logging
import re
from collections.abc import Collection

from transformers.modeling_utils import PreTrainedModel

from klotski.errors import ModelError
from klotski.weights.checkpoint import Checkpoint
from klotski.weights.quantization import is_part_of_quantization

__all__ = ["check_unused"]

logger = logging.getLogger(__name__)

SHOWN = 5  # names; layers and experts count as one
DERIVED = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$")  # buffers that old checkpoints hold, and models compute


def check_unused(model: PreTrainedModel, checkpoint: Checkpoint, used: Collection[str]) -> None:
    """List what a model does not use of a checkpoint, but for what its authors know to be there.

    Raises:
        ModelError: it is a part of quantized weights.
    """
    known = re.compile("|".join([*DERIVED, *(model._keys_to_ignore_on_load_unexpected or ())]))
    unused = [name for name in checkpoint.tensors if name not in used and not known.search(name)]
    for name in unused:
        if is_part_of_quantization(name):
            raise ModelError(
                f"{checkpoint.tensors[name].file}: {name} belongs to quantized weights, though config.json has no "
                "quantization_config; they cannot be streamed yet, use the unquantized checkpoint"
            )
    if unused:
        kinds = sorted({re.sub(r"\.\d+(?=\.)", ".*", name) for name in unused})
        more = f" and {len(kinds) - SHOWN} kinds more" if len(kinds) > SHOWN else ""
        logger.warning(
            "%s: %d tensors that the model does not use are left out: %s%s",
            checkpoint.folder,
            len(unused),
            ", ".join(kinds[:SHOWN]),
            more,
        )
