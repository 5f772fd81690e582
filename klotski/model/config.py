"""A checkpoint's config as transformers reads it, without what nothing here needs."""

from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from klotski.errors import ModelError, first_line
from klotski.weights.finding import read_config_file
from klotski.weights.quantization import refuse_quantized

__all__ = ["read_config"]

KEPT_FOR_TRAINING = ("output_router_logits", "output_hidden_states", "output_attentions")
"""Settings by which a model gives more than the next token needs, and keeps it in memory."""


def read_config(folder: Path) -> PreTrainedConfig:
    """The checkpoint's config.

    Raises:
        CheckpointError: it is missing or unreadable.
        ModelError: transformers does not know the architecture, or the weights are quantized.
    """
    refuse_quantized(folder, read_config_file(folder))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        prepare(config)
    except Exception as error:  # a config's own code raises whatever its values lead to
        raise ModelError(f"{folder / 'config.json'}: {first_line(error)}") from error
    if config.is_encoder_decoder:
        raise ModelError(f"{folder / 'config.json'}: {config.model_type} has an encoder; only decoders can be streamed")
    return config


def prepare(config: PreTrainedConfig) -> None:
    """Take out of a config what nothing here needs, and what models refuse to be built with."""
    text = config.get_text_config()
    if (getattr(text, "pad_token_id", None) or 0) >= text.vocab_size:
        text.pad_token_id = None
    for part in (config, text):
        for name in KEPT_FOR_TRAINING:
            if getattr(part, name, None):
                setattr(part, name, False)
