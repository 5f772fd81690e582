"""Which files and tensors are a checkpoint's weights: those that transformers takes, or a refusal by name."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from klotski.errors import KlotskiError
from klotski.model import open_model
from tests.architectures import save_checkpoint
from tests.engine import read_results, run_requests
from tests.reference import plain_generate

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
REQUESTS = [{"id": str(n), "prompt_token_ids": [5 + n, 9, 17 * n + 3], "max_tokens": 8} for n in range(4)]

Change = Callable[[Path], None]


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of a file."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def configure(folder: Path, **settings: object) -> None:
    """Change keys of a config."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def index_of(folder: Path) -> dict[str, dict[str, str]]:
    content: dict[str, dict[str, str]] = json.loads((folder / INDEX).read_text())
    return content


# Taken as transformers takes them


def single_beside_an_index_of_an_earlier_save(folder: Path) -> None:
    save_checkpoint("mixtral", folder, shard_size="200KB")
    other = save_checkpoint("mixtral", folder / "later")
    rewrite(other / SINGLE, lambda tensors: tensors.update({name: -each for name, each in tensors.items()}))
    (other / SINGLE).rename(folder / SINGLE)


def index_that_names_the_wrong_shard(folder: Path) -> None:
    save_checkpoint("mixtral", folder, shard_size="200KB")
    index = index_of(folder)
    names = list(index["weight_map"])
    shards = [index["weight_map"][name] for name in names]
    index["weight_map"] = dict(zip(names, [shards[-1], *shards[:-1]], strict=True))
    (folder / INDEX).write_text(json.dumps(index))


def index_that_promises_what_the_model_does_not_want(folder: Path) -> None:
    save_checkpoint("mixtral", folder, shard_size="200KB")
    index = index_of(folder)
    shard = next(iter(index["weight_map"].values()))
    index["weight_map"] |= {f"mtp.layers.0.{name}.weight": shard for name in ("eh_proj", "norm")}
    (folder / INDEX).write_text(json.dumps(index))


def file_that_the_config_names(folder: Path) -> None:
    single_beside_an_index_of_an_earlier_save(folder)
    configure(folder, transformers_weights=INDEX)


def tied_by_the_config_with_a_head_of_its_own(folder: Path) -> None:
    save_checkpoint("mixtral", folder)
    configure(folder, tie_word_embeddings=True)


def tied_with_a_copy_of_the_head(folder: Path) -> None:
    save_checkpoint("mixtral", folder)
    configure(folder, tie_word_embeddings=True)
    rewrite(
        folder / SINGLE,
        lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}),
    )


def tied_with_nothing_but_a_head(folder: Path) -> None:
    tied_with_a_copy_of_the_head(folder)
    rewrite(folder / SINGLE, lambda tensors: tensors.update(unused=tensors.pop("model.embed_tokens.weight")))


def tensors_that_the_model_does_not_use(folder: Path) -> None:
    save_checkpoint("mixtral", folder)
    rewrite(folder / SINGLE, lambda tensors: tensors.update({"mtp.layers.0.eh_proj.weight": torch.ones(4, 4)}))


@pytest.mark.parametrize(
    "make",
    [
        single_beside_an_index_of_an_earlier_save,
        index_that_names_the_wrong_shard,
        index_that_promises_what_the_model_does_not_want,
        file_that_the_config_names,
        tied_by_the_config_with_a_head_of_its_own,
        tied_with_a_copy_of_the_head,
        tied_with_nothing_but_a_head,
        tensors_that_the_model_does_not_use,
    ],
)
def test_tokens_are_those_of_the_weights_that_transformers_takes(make: Change, tmp_path: Path) -> None:
    make(tmp_path / "model")
    run_requests(tmp_path, tmp_path / "model", REQUESTS)
    assert read_results(tmp_path) == plain_generate(tmp_path / "model", REQUESTS)


def test_a_head_that_equals_the_embeddings_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    tied_with_a_copy_of_the_head(tmp_path / "copy")
    tied_by_the_config_with_a_head_of_its_own(tmp_path / "own")
    copy, own = (open_model(tmp_path / name, None).fixed.disk_bytes for name in ("copy", "own"))
    assert own - copy == 128 * 64 * 4


# Refused by name


def quantized_experts(dtype: torch.dtype, *beside: str) -> Change:
    """A config that says nothing, and experts whose numbers mean nothing without their scales."""

    def make(folder: Path) -> None:
        save_checkpoint("mixtral", folder)

        def change(tensors: dict[str, torch.Tensor]) -> None:
            for name in [name for name in tensors if ".experts." in name]:
                tensors[name] = tensors[name].to(dtype)
                tensors |= {name.replace("weight", suffix): torch.ones(1, 1) for suffix in beside}

        rewrite(folder / SINGLE, change)

    return make


def said_by_the_config(**settings: object) -> Change:
    def make(folder: Path) -> None:
        save_checkpoint("mixtral", folder)
        configure(folder, **settings)

    return make


def only(*names: str) -> Change:
    """A folder with a config and these files."""

    def make(folder: Path) -> None:
        save_checkpoint("mixtral", folder)
        (folder / SINGLE).unlink()
        for name in names:
            (folder / name).touch()

    return make


def adapter_alone(folder: Path) -> None:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")


EXPERT = r"model.layers.0.block_sparse_moe.experts.0.w1"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (quantized_experts(torch.float8_e4m3fn, "weight_scale_inv"), r"weight_scale_inv belongs to quantized weights"),
        (quantized_experts(torch.float8_e4m3fn), rf"{EXPERT}.weight is stored as float8_e4m3fn"),
        (quantized_experts(torch.float8_e5m2), "is stored as float8_e5m2"),
        (quantized_experts(torch.int8), "is stored as int8"),
        (quantized_experts(torch.uint8), "is stored as uint8"),
        (quantized_experts(torch.bfloat16, "scales", "qzeros"), "belongs to quantized weights"),
        (quantized_experts(torch.bfloat16, "weight_zero_point"), "weight_zero_point belongs to quantized weights"),
        (quantized_experts(torch.bfloat16, "qweight"), "qweight belongs to quantized weights"),
        (quantized_experts(torch.bfloat16, "w1_blocks"), "w1_blocks belongs to quantized weights"),
        (said_by_the_config(quantization_config={"quant_method": "gptq"}), r"holds quantized weights \(gptq\)"),
        (only("pytorch_model.bin"), r"pytorch_model\.bin is not in safetensors"),
        (only("pytorch_model.bin.index.json"), "is not in safetensors"),
        (only("model-q4_0.gguf"), r"model-q4_0\.gguf is not in safetensors"),
        (adapter_alone, "has no config.json but an adapter: merge it"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(make: Change, said: str, tmp_path: Path) -> None:
    make(tmp_path / "model")
    (tmp_path / "run").mkdir()
    with pytest.raises(KlotskiError, match=said) as refused:
        run_requests(tmp_path / "run", tmp_path / "model", REQUESTS)
    assert str(tmp_path / "model") in str(refused.value)
    assert not (tmp_path / "run" / "plan.json").exists(), "it was not predicted either"


def test_what_is_left_out_is_listed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_checkpoint("mixtral", tmp_path)
    names = [f"model.mtp.{layer}.{part}.weight" for layer in range(9) for part in ("a", "b")]
    derived = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(tmp_path / SINGLE, lambda tensors: tensors.update({name: torch.ones(2) for name in [*names, derived]}))
    (tmp_path / "adapter_config.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        open_model(tmp_path, None)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("klotski")]
    assert said == [
        f"{tmp_path}: the adapter beside the base model's weights is not applied",
        f"{tmp_path}: 18 tensors that the model does not use are left out: model.mtp.*.a.weight, model.mtp.*.b.weight",
    ]
