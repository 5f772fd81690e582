"""Small random checkpoints of every architecture that must come out token-identical."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

__all__ = ["ARCHITECTURES", "save_checkpoint"]

COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
GROUPED = {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
FINE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LOCAL = {"num_local_experts": 8, "num_experts_per_tok": 2}
SPARSE = {
    "index_head_dim": 16,
    "index_n_heads": 16,  # with few, many scores are equally zero, and which of them count is a matter of chance
    "index_topk": 8,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "mixtral": LOCAL,
    "qwen2_moe": FINE | {"shared_expert_intermediate_size": 48},
    "qwen3_moe": FINE | {"head_dim": 16},
    "qwen3_next": FINE
    | {
        "num_hidden_layers": 4,
        "head_dim": 16,
        "shared_expert_intermediate_size": 48,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 2},
    "deepseek_v2": GROUPED | LATENT | {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "head_dim": 8},
    "deepseek_v3": GROUPED | LATENT | {"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "head_dim": 8},
    "gpt_oss": LOCAL | {"head_dim": 16, "sliding_window": 16, "num_hidden_layers": 4},
    "glm4_moe": GROUPED | {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "head_dim": 16},
    "glm4_moe_lite": GROUPED | LATENT | {"n_group": 1, "topk_group": 1},
    "granitemoe": LOCAL,
    "phimoe": LOCAL,
    "minimax_m2": LOCAL | {"head_dim": 16, "rotary_dim": 8},
    "ernie4_5_moe": {"moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 48, "moe_num_shared_experts": 1},
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": 2, "head_dim": 16},
    "jamba": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "dots1": GROUPED | {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "head_dim": 16},
    "deepseek_v32": GROUPED | LATENT | SPARSE | {"n_group": 1, "topk_group": 1},
    "glm_moe_dsa": GROUPED | LATENT | SPARSE | {"n_group": 1, "topk_group": 1},
    "lfm2_moe": FINE
    | {
        "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "num_hidden_layers": 4,
    },
}


def save_checkpoint(architecture: str, folder: Path, shard_size: str = "10GB", **more: Any) -> Path:
    """A random model in the Hub's layout, the same for the same architecture.

    Weights are wider than transformers initialises them: logits of different tokens must lie
    further apart than the last bits of float32 arithmetic.
    """
    settings = COMMON | ARCHITECTURES[architecture] | more
    config = AutoConfig.for_model(architecture, **settings)
    torch.manual_seed(sum(architecture.encode()))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and "A_log" not in name:
                parameter.normal_(0, 0.08)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return folder
