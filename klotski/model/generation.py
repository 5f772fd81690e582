"""What a checkpoint says of how it is decoded: end tokens, penalties, suppressed tokens, how it is sampled.

As in transformers, `generation_config.json` counts, and `config.json` where there is no such file or it is damaged.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig

from klotski.errors import first_line
from klotski.model.sampling import ALWAYS, WHEN_SAMPLED, Decoding, Place

__all__ = ["read_decoding"]

logger = logging.getLogger(__name__)

FILE = "generation_config.json"
OFF: dict[str, Any] = {"repetition_penalty": 1.0, "top_k": 0, "top_p": 1.0, "typical_p": 1.0}
"""Values that change nothing, beside None; of other settings 0, False and None."""
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
    file, found = read_file(folder, config)
    said = found.to_diff_dict()
    vocab_size: int = config.get_text_config().vocab_size
    stop_ids = read_stop_ids(file, said.get("eos_token_id"), vocab_size)
    settings = {name: value for name, value in said.items() if is_set(name, value)}
    ignored = {name: "" for name in settings if name not in {*ALWAYS, *WHEN_SAMPLED}}
    ignored |= {
        name: f" ({why})"
        for name, value in settings.items()
        if name not in ignored and (why := what_is_wrong(name, value, stop_ids, vocab_size))
    }
    if ignored:
        listed = ", ".join(f"{name}={said[name]}{why}" for name, why in ignored.items())
        logger.warning("%s: %s cannot be honoured here", file, listed)
    pads: tuple[Any, ...] = (getattr(config.get_text_config(), "pad_token_id", None), *stop_ids, 0)
    pad_id = int(next(token for token in pads if is_token(token, vocab_size)))
    temperature = (said.get("temperature") or 1.0) if said.get("do_sample") else None
    return Decoding(stop_ids, pad_id, {name: settings[name] for name in settings if name not in ignored}, temperature)


def read_stop_ids(file: Path, said: Any, vocab_size: int) -> tuple[int, ...]:
    """The end tokens that a model can give; a warning for what is no token at all."""
    ids = [] if said is None else said if isinstance(said, list | tuple) else [said]
    if wrong := [token for token in ids if not isinstance(token, int | float) or token % 1]:
        logger.warning("%s: eos_token_id=%s is ignored as far as it is no token id: %s", file, said, wrong)
    return tuple(int(token) for token in ids if is_token(token, vocab_size))


def is_token(token: Any, vocab_size: int) -> bool:
    """Whether a value is the id of a token that a model has."""
    return isinstance(token, int | float) and token in range(vocab_size)


def what_is_wrong(name: str, value: Any, stop_ids: tuple[int, ...], vocab_size: int) -> str | None:
    """Why transformers' code refuses a value of a setting, tried on a made-up sequence; None: it does not."""
    place = Place(torch.tensor(stop_ids or (0,)), prompt=1, device="cpu")
    try:
        processor = (ALWAYS | WHEN_SAMPLED)[name](value, place)
        for tokens in (1, 2):
            processor(torch.zeros((1, tokens), dtype=torch.long), torch.zeros((1, vocab_size)))
    except Exception as error:
        return first_line(error)
    return None


def read_file(folder: Path, config: PreTrainedConfig) -> tuple[Path, GenerationConfig]:
    """The checkpoint's generation config and the file that it is from. A file that cannot be read is warned about.

    Source: `transformers.GenerationMixin.adjust_generation_fn`.
    """
    model_config = folder / "config.json"
    for file, options in ((folder / FILE, {}), (model_config, {"_from_model_config": True})):
        if file.is_file():
            try:
                return file, GenerationConfig.from_pretrained(folder, config_file_name=file.name, **options)
            except Exception as error:  # what it asks for are, after all, defaults
                logger.warning(
                    "settings of generation in %s could not be read and are ignored: %s", file, first_line(error)
                )
    return model_config, GenerationConfig(eos_token_id=getattr(config.get_text_config(), "eos_token_id", None))


def is_set(name: str, value: Any) -> bool:
    """Whether a setting changes which tokens come out."""
    if name.startswith("_") or name in ("transformers_version", *OF_THE_WORKLOAD, *WITHOUT_EFFECT):
        return name == "num_beams" and value not in (None, 0, 1)
    if name.startswith(("output_", "assistant_", "num_assistant", "prompt_lookup")):
        return False
    return value is not None and value != OFF[name] if name in OFF else bool(value)
