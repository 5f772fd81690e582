"""What a checkpoint says of how it is decoded: end tokens, penalties, suppressed tokens, how it is sampled.

As in transformers, `generation_config.json` counts, and `config.json` where there is no such file or it is damaged.
"""

import logging
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from klotski.errors import first_line
from klotski.model.sampling import ALWAYS, WHEN_SAMPLED, Decoding

__all__ = ["read_decoding"]

logger = logging.getLogger(__name__)

FILE = "generation_config.json"
OFF: dict[str, Any] = {"repetition_penalty": 1.0, "top_k": 0, "top_p": 1.0, "typical_p": 1.0}
"""Values that change nothing; of other settings 0, False and None."""
OF_THE_WORKLOAD = ("do_sample", "temperature", "max_length", "max_new_tokens")
WITHOUT_EFFECT = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "use_cache",
    "cache_implementation",
    "cache_config",
    "max_cache_len",
    "return_legacy_cache",
    "return_dict_in_generate",
    "num_return_sequences",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "renormalize_logits",
    "low_memory",
    "compile_config",
    "disable_compile",
    "prefill_chunk_size",
    "max_time",
    "token_healing",
    "is_assistant",
)
"""Settings of length, memory and form, those of beams but for their number, and what a sampler here does anyway."""


def read_decoding(folder: Path, config: PreTrainedConfig) -> Decoding:
    """How a checkpoint wants to be decoded, as far as that is honoured here; what is not is warned about by name."""
    found = read_file(folder)
    said = (found or GenerationConfig.from_model_config(config)).to_diff_dict()
    ids = said.get("eos_token_id")
    stop_ids = () if ids is None else tuple(ids) if isinstance(ids, list | tuple) else (ids,)
    settings = {name: value for name, value in said.items() if is_set(name, value)}
    ignored = [name for name in settings if name not in {*ALWAYS, *WHEN_SAMPLED}]
    if ignored:
        logger.warning(
            "%s: %s cannot be honoured here", folder / FILE, ", ".join(f"{name}={said[name]}" for name in ignored)
        )
    vocab_size: int = config.get_text_config().vocab_size
    pads = (getattr(config.get_text_config(), "pad_token_id", None), *stop_ids, 0)
    pad_id = next(token for token in pads if token is not None and 0 <= token < vocab_size)
    temperature = (said.get("temperature") or 1.0) if said.get("do_sample") else None
    return Decoding(stop_ids, pad_id, {name: settings[name] for name in settings if name not in ignored}, temperature)


def read_file(folder: Path) -> GenerationConfig | None:
    """The checkpoint's generation config; None: it has none, or one that cannot be read."""
    if not (folder / FILE).is_file():
        return None
    try:
        return GenerationConfig.from_pretrained(folder)
    except Exception as error:  # a damaged file is no reason not to run: its settings are, after all, defaults
        logger.warning("%s could not be read and is ignored: %s", folder / FILE, first_line(error))
        return None


def is_set(name: str, value: Any) -> bool:
    """Whether a setting changes which tokens come out."""
    if name.startswith("_") or name in ("transformers_version", *OF_THE_WORKLOAD, *WITHOUT_EFFECT):
        return name == "num_beams" and (value or 1) > 1
    if name.startswith(("output_", "assistant_", "num_assistant", "prompt_lookup")):
        return False
    return bool(value) and value != OFF.get(name)
