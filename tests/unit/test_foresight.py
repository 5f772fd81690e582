"""Routers that are asked early say what the model's own would."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from klotski.core import Block
from klotski.model import Foresight, OpenModel, keep_routers, open_model, router_bytes
from klotski.model.foresight import ASKED, routers_of
from klotski.weights.memory import allocate
from klotski.weights.reader import Reader
from tests.architectures import ARCHITECTURES, save_checkpoint

BIASED_FROM_OUTSIDE = {"lfm2_moe", "minimax_m2"}  # the router's own part is a projection


def foresight_of(model: OpenModel) -> Foresight:
    reader = Reader(model.staging)

    def views_of(layer: int) -> dict[str, torch.Tensor]:
        layout = model.layouts[Block(layer)]
        slot = allocate(layout.slot_bytes)
        reader.read(layout, slot)
        return layout.views_of(slot)

    try:
        return keep_routers(model.shell, views_of)
    finally:
        reader.close()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_copies_choose_as_the_models_own_norm_and_router_do(architecture: str, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(architecture, tmp_path)
    model = open_model(checkpoint, torch.float32)
    whole = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    found = routers_of(model.shell)
    assert set(found) == {layer for layer, count in enumerate(model.shell.expert_counts) if count}
    foresight = foresight_of(model)
    hidden = torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        for layer, names in found.items():
            assert len(names) == 2, "a norm and a router"
            said: Any = hidden.view(35, 64)
            for module in map(whole.get_submodule, names):
                is_biased = architecture in BIASED_FROM_OUTSIDE and module.weight.dim() == 2
                said = nn.functional.linear(said, module.weight) if is_biased else module(said)
            if isinstance(said, torch.Tensor):
                choices = said.topk(model.shell.top_k).indices
            else:
                choices = next(part for part in said[::-1] if part.dtype in (torch.int64, torch.int32))
            count = model.shell.expert_counts[layer]
            assert foresight.outlook(layer, hidden) == choices.flatten().bincount(minlength=count).tolist()


def test_a_layer_without_experts_has_no_outlook(tmp_path: Path) -> None:
    model = open_model(save_checkpoint("jamba", tmp_path), torch.float32)
    assert foresight_of(model).outlook(0, torch.zeros(1, 1, 64)) is None


def test_of_a_long_prompt_some_tokens_speak_for_all(tmp_path: Path) -> None:
    model = open_model(save_checkpoint("mixtral", tmp_path), torch.float32)
    outlook = foresight_of(model).outlook(0, torch.randn(2, ASKED, 64))
    assert outlook is not None
    assert sum(outlook) == 2 * ASKED * 2


def test_what_is_kept_is_a_small_part_of_the_model(tmp_path: Path) -> None:
    model = open_model(save_checkpoint("mixtral", tmp_path), torch.float32)
    assert router_bytes(model.shell) == 3 * (64 + 8 * 64) * 4
