"""What layers are said to keep of a sequence is what they do keep."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedConfig

from klotski.errors import ModelError
from klotski.model.kept import Kept, find_kept, nbytes
from klotski.model.shell import Shell
from tests.architectures import ARCHITECTURES, COMMON

TOKENS, SEQUENCES = 5, 2
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "rope_theta": 1e4}
LONG |= {"short_mscale": 1.2, "long_mscale": 1.2, "original_max_position_embeddings": 128}


def config_of(architecture: str, **more: Any) -> PreTrainedConfig:
    settings: dict[str, Any] = COMMON | ARCHITECTURES[architecture] | more
    config: PreTrainedConfig = AutoConfig.for_model(architecture, **settings)
    return config


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_is_what_a_model_keeps_whose_numbers_are_computed(architecture: str, dtype: torch.dtype) -> None:
    kept = Shell(config_of(architecture), dtype, cache_blocking=False).kept
    config = config_of(architecture)
    cache = DynamicCache(config=config)
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        model(input_ids=torch.full((SEQUENCES, TOKENS), 3), past_key_values=cache)
    expected = [SEQUENCES * (TOKENS * layer.token_bytes + layer.state_bytes) for layer in kept]
    assert [nbytes(layer) for layer in cache.layers] == expected
    assert sum(expected) > 0


@pytest.mark.parametrize(
    ("architecture", "more", "first", "last"),
    [
        ("mixtral", {}, Kept(256, 0, None, moves=True), Kept(256, 0, None, moves=True)),
        ("gpt_oss", {}, Kept(256, 0, 16, moves=False), Kept(256, 0, None, moves=True)),
        ("phimoe", {"sliding_window": 99, "rope_parameters": LONG}, *[Kept(256, 0, 99, moves=False)] * 2),
        ("qwen3_next", {}, Kept(0, 4 * (128 * 4 + 4 * 16 * 16), None, moves=False), Kept(256, 0, None, moves=True)),
    ],
)
def test_full_attention_moves_and_windows_and_states_do_not(
    architecture: str, more: dict[str, Any], first: Kept, last: Kept
) -> None:
    kept = Shell(config_of(architecture, **more), torch.float32, cache_blocking=True).kept
    assert (kept[0], kept[-1]) == (first, last)


def test_a_model_whose_code_fails_is_refused() -> None:
    class Broken(nn.Module):
        def forward(self, **inputs: Any) -> None:
            raise TypeError("'NoneType' object is not subscriptable")

    broken: Any = Broken()
    with pytest.raises(ModelError, match=r"mixtral: its code fails on two tokens \('NoneType' object is not subscr"):
        find_kept(broken, config_of("mixtral"))
