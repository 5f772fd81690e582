"""What a checkpoint says beside its weights: tokens are those of `generate`, or a sentence says what is ignored."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from klotski.errors import KlotskiError, ModelError
from klotski.model import open_model
from klotski.model.generation import read_decoding
from tests.architectures import ARCHITECTURES, save_checkpoint
from tests.engine import read_lines, read_results, run_requests

EXPERTS = ARCHITECTURES["mixtral"]


def requests(*lengths: tuple[int, int]) -> list[dict[str, Any]]:
    """Prompts and outputs of these lengths."""
    generator = torch.Generator().manual_seed(5)
    return [
        {"id": str(n), "prompt_token_ids": torch.randint(3, 128, (prompt,), generator=generator).tolist(),
         "max_tokens": output}
        for n, (prompt, output) in enumerate(lengths)
    ]  # fmt: skip


def generate(folder: Path, asked: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Greedy tokens of `generate`, by the checkpoint's own settings, one prompt at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    outputs = {}
    for request in asked:
        ids = torch.tensor([request["prompt_token_ids"]])
        rows = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=request["max_tokens"], do_sample=False
        )
        outputs[request["id"]] = rows[0, ids.shape[1] :].tolist()
    return outputs


UNEVEN = requests((9, 12), (4, 8), (12, 12), (6, 10))
SETTINGS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.8},
    {"no_repeat_ngram_size": 2},
    {"suppress_tokens": list(range(3, 90))},
    {"begin_suppress_tokens": list(range(3, 100))},
    {"bad_words_ids": [[token] for token in range(20, 80)]},
    {"min_new_tokens": 6, "eos_token_id": list(range(2, 90))},
    {"min_length": 12, "eos_token_id": list(range(2, 90))},
    {"sequence_bias": [[[30], 9.0]]},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "suppress_tokens": [5, 6]},
    {"eos_token_id": list(range(2, 60))},
    {},  # a file without end tokens ends nothing, whatever config.json says
]


def configure(folder: Path, file: str, **settings: Any) -> None:
    """Change keys of a JSON file of a checkpoint."""
    known = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps({**known, **settings}))


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: " ".join(settings) or "none")
def test_greedy_decoding_honours_what_generate_does(settings: dict[str, Any], tmp_path: Path) -> None:
    model = save_checkpoint("mixtral", tmp_path / "model")
    (model / "generation_config.json").write_text(json.dumps(settings))
    configure(model, "config.json", eos_token_id=list(range(2, 40)))
    run_requests(tmp_path, model, UNEVEN, "pipeline.batch_size=4")
    assert read_results(tmp_path) == generate(model, UNEVEN)


@pytest.mark.parametrize("content", [None, "{damaged"])
def test_where_there_is_no_generation_config_the_model_s_config_has_the_end_tokens(
    content: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = save_checkpoint("mixtral", tmp_path / "model")
    configure(model, "config.json", eos_token_id=list(range(2, 40)))
    (model / "generation_config.json").unlink()
    if content is not None:
        (model / "generation_config.json").write_text(content)
    run_requests(tmp_path, model, UNEVEN)
    assert ("generation_config.json could not be read" in caplog.text) == (content is not None)
    assert read_results(tmp_path) == generate(model, UNEVEN)
    assert {line["finish_reason"] for line in read_lines(tmp_path / "results.jsonl")} >= {"stop"}


@pytest.mark.parametrize("settings", [{"repetition_penalty": 1.8}, {"suppress_tokens": list(range(3, 90))}])
def test_where_there_is_no_generation_config_the_model_s_config_has_its_settings(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    model = save_checkpoint("mixtral", tmp_path / "model")
    (model / "generation_config.json").unlink()
    plain = generate(model, UNEVEN)
    configure(model, "config.json", **settings)
    run_requests(tmp_path, model, UNEVEN)
    assert read_results(tmp_path) == generate(model, UNEVEN) != plain


@pytest.mark.parametrize(
    "settings",
    [
        {"output_router_logits": True},
        {"output_hidden_states": True},
        {"time_step_limit": [0.0, float("inf")]},  # as state-space models have it
    ],
    ids=str,
)
def test_settings_of_a_config_that_no_token_depends_on_cost_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    model = save_checkpoint("mixtral", tmp_path / "model")
    expected = generate(model, UNEVEN)
    configure(model, "config.json", **settings)
    run_requests(tmp_path, model, UNEVEN, "pipeline.batch_size=4")
    assert read_results(tmp_path) == expected


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"text_config": "x"}, "config.json: "),
        ({"num_experts_per_tok": 0}, "mixtral chooses 0 experts for a token"),
        ({"is_encoder_decoder": True}, "config.json: mixtral has an encoder"),
        ("[" * 100_000, "config.json is damaged"),
        ("[]", "config.json is damaged"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_config_that_no_model_comes_of_is_refused(settings: dict[str, Any] | str, said: str, tmp_path: Path) -> None:
    model = save_checkpoint("mixtral", tmp_path)
    if isinstance(settings, str):
        (model / "config.json").write_text(settings)
    else:
        configure(model, "config.json", **settings)
    with pytest.raises(KlotskiError, match=said):
        open_model(model, None)


def test_what_is_not_honoured_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = save_checkpoint("mixtral", tmp_path / "model")
    said = {"num_beams": 4, "guidance_scale": 2.0, "temperature": 0.6, "do_sample": True, "top_k": 20, "max_length": 99}
    (model / "generation_config.json").write_text(json.dumps(said))
    run_requests(tmp_path, model, UNEVEN)
    lines = [record.getMessage() for record in caplog.records if "generation_config" in record.getMessage()]
    assert len(lines) == 2
    assert "num_beams=4" in lines[0] and "guidance_scale=2.0" in lines[0] and "top_k" not in lines[0]
    assert "workload.temperature=0.6" in lines[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": -1.0},
        {"repetition_penalty": 0.0},
        {"no_repeat_ngram_size": "x"},
        {"bad_words_ids": [5, 6]},
        {"bad_words_ids": [[9999]]},
        {"suppress_tokens": "x"},
        {"min_length": -1},
        {"sequence_bias": [[[5], "x"]]},
        {"exponential_decay_length_penalty": 3},
        {"top_k": -1},
        {"top_p": 2.0},
        {"typical_p": 0.0},
        {"num_beams": "x"},
        {"eos_token_id": "</s>"},
        {"eos_token_id": [2, None]},
    ],
    ids=str,
)
def test_a_value_that_transformers_refuses_is_named_and_the_others_count(
    settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = AutoConfig.for_model("mixtral", vocab_size=128)
    good = {"suppress_tokens": [9], "eos_token_id": 2}
    (tmp_path / "generation_config.json").write_text(json.dumps(good | settings))
    decoding = read_decoding(tmp_path, config)
    ((name, _),) = settings.items()
    assert f"generation_config.json: {name}=" in caplog.text
    assert decoding.settings == {key: value for key, value in good.items() if key not in ("eos_token_id", name)}
    assert decoding.stop_ids == (() if settings == {"eos_token_id": "</s>"} else (2,))


@pytest.mark.parametrize("token", [-1, 128, 10**30, 1e300])
def test_an_end_token_that_the_model_cannot_give_is_none(token: float, tmp_path: Path) -> None:
    config = AutoConfig.for_model("mixtral", vocab_size=128)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [token, 2.0], "min_length": 3}))
    assert read_decoding(tmp_path, config).stop_ids == (2,)


@pytest.mark.parametrize(
    "settings", [{"top_k": 1}, {"top_p": 0.0}, {"top_p": 1e-6}, {"min_p": 1.0}, {"epsilon_cutoff": 0.999}]
)
def test_sampling_honours_what_cuts_it_off(settings: dict[str, Any], tmp_path: Path) -> None:
    """Cut off behind the likeliest token, sampling is greedy."""
    model = save_checkpoint("mixtral", tmp_path / "model")
    (model / "generation_config.json").write_text("{}")
    greedy = generate(model, UNEVEN)
    (model / "generation_config.json").write_text(json.dumps(settings))
    run_requests(tmp_path, model, UNEVEN, "workload.temperature=1.5", "pipeline.batch_size=4")
    assert read_results(tmp_path) == greedy


@pytest.mark.parametrize("pad", [-1, 128, 10**6, None])
def test_a_pad_token_that_does_not_exist_is_none(pad: int | None, tmp_path: Path) -> None:
    model = save_checkpoint("mixtral", tmp_path / "model")
    expected = generate(model, UNEVEN)
    for file in ("config.json", "generation_config.json"):
        configure(model, file, pad_token_id=pad)
    run_requests(tmp_path, model, UNEVEN, "pipeline.batch_size=4")
    assert read_results(tmp_path) == expected


# Files that token ids do not need


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer.json": "{damaged"},
        {"tokenizer.json": '{"version": "99", "model": {"type": "Exotic"}}'},
        {"tokenizer_config.json": '{"tokenizer_class": "NoSuchTokenizer"}', "tokenizer.json": "{}"},
        {"tokenizer_config.json": '{"auto_map": {"AutoTokenizer": ["code.py", null]}}'},
        {"tokenizer.model": "not sentencepiece"},
        {"vocab.json": "[]"},
    ],
    ids=str,
)
def test_a_tokenizer_that_cannot_be_read_costs_no_request_of_token_ids(
    files: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = save_checkpoint("mixtral", tmp_path / "model")
    for name, content in files.items():
        (model / name).write_text(content)
    asked = [*UNEVEN[:2], {"id": "text", "prompt": "words"}]
    run_requests(tmp_path, model, asked)
    assert "the tokenizer cannot be read" in caplog.text
    assert read_results(tmp_path).keys() == {"0", "1"}
    assert [line["id"] for line in read_lines(tmp_path / "errors.jsonl")] == ["text"]


@pytest.mark.parametrize(
    "config",
    [
        {"num_attention_heads": "four"},
        {"num_attention_heads": 5},
        {"hidden_act": "no_such_function"},
        {"rope_parameters": {"rope_type": "no_such_rope"}},
        {"model_type": "no_such_model"},
        {"architectures": 5, "num_hidden_layers": -1},
        {"auto_map": {"AutoConfig": "code.Config"}, "model_type": "theirs"},
    ],
    ids=str,
)
def test_whatever_a_config_leads_to_ends_in_a_sentence(config: dict[str, Any], tmp_path: Path) -> None:
    model = save_checkpoint("mixtral", tmp_path / "model")
    configure(model, "config.json", **config)
    with pytest.raises(KlotskiError) as refused:
        open_model(model, None)
    assert len(str(refused.value).splitlines()) == 1


# Padding


@pytest.mark.parametrize("predictor", ["correlation", "lookahead"])
def test_padding_and_ended_rows_ask_for_no_experts(predictor: str, tmp_path: Path) -> None:
    model = save_checkpoint("mixtral", tmp_path / "model")
    asked = requests((17, 2), (3, 14), (9, 6), (1, 9))
    history = f"history={tmp_path / 'history'}"
    run_requests(tmp_path, model, asked, "pipeline.batch_size=4", f"pipeline.predictor={predictor}", history)
    experts = json.loads((tmp_path / "experts.json").read_text())
    inner = sum(len(each["prompt_token_ids"]) + each["max_tokens"] - 1 for each in asked)
    last = sum(each["max_tokens"] for each in asked)
    assert [sum(layer) for layer in experts["tokens"]] == [2 * inner, 2 * inner, 2 * last]


# Rotary embeddings that depend on the length of a sequence

LONG = {"rope_theta": 1e4, "original_max_position_embeddings": 24, "rope_type": "longrope",
        "short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "factor": 4.0}  # fmt: skip
ROPES = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
    "longrope": LONG,
    "yarn": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 24},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
}
ACROSS = requests((30, 12), (5, 9), (20, 14), (40, 8), (12, 3), (23, 9))


def save_with_rope(folder: Path, rope: dict[str, Any], architecture: str = "mixtral", **settings: Any) -> Path:
    save_checkpoint(architecture, folder)
    configure(folder, "config.json", max_position_embeddings=24, rope_parameters=rope, head_dim=16, **settings)
    return folder


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("prefill", ["auto", "8"])
def test_prompts_beyond_the_trained_positions_run_as_in_generate(rope: str, prefill: str, tmp_path: Path) -> None:
    """On either side of the length, across it, in one group; and none is refused within what scaling allows."""
    model = save_with_rope(tmp_path / "model", ROPES[rope])
    if rope == "longrope":
        configure(model, "config.json", max_position_embeddings=96)
    run_requests(tmp_path, model, ACROSS, "pipeline.n_batches=3", f"pipeline.prefill_tokens={prefill}")
    assert read_results(tmp_path) == generate(model, ACROSS)
    too_long = [*ACROSS, {"id": "long", "prompt_token_ids": [5] * 97, "max_tokens": 1}]
    (tmp_path / "again").mkdir()
    run_requests(tmp_path / "again", model, too_long)
    assert [line["id"] for line in read_lines(tmp_path / "again" / "errors.jsonl")] == ["long"]


def test_a_model_that_discards_its_cache_at_a_length_runs_on_either_side_of_it(tmp_path: Path) -> None:
    """Phi-MoE: a sequence that would grow across is refused, because `generate` computes it anew there."""
    rope = LONG | {"short_mscale": 1.1, "long_mscale": 1.6}
    model = save_with_rope(tmp_path / "model", rope, "phimoe", original_max_position_embeddings=24)
    configure(model, "config.json", max_position_embeddings=96)
    run_requests(tmp_path, model, ACROSS, "pipeline.n_batches=2", "pipeline.batch_size=2")
    refused = [line["id"] for line in read_lines(tmp_path / "errors.jsonl")]
    assert refused == ["2", "5"]
    expected = generate(model, ACROSS)
    assert read_results(tmp_path) == {name: expected[name] for name in expected if name not in refused}


def test_an_architecture_with_a_cache_of_its_own_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    settings = EXPERTS | {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 128}
    AutoConfig.for_model("minimax", **settings).save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=r"minimax keeps a cache of its own \(MiniMaxCache\), which cannot be streamed"
    ):
        open_model(tmp_path, None, is_dummy=True)


# A budget that not all requests fit


def test_a_request_that_can_never_fit_costs_itself_alone(tmp_path: Path) -> None:
    model = save_checkpoint("mixtral", tmp_path / "model")
    asked = [*UNEVEN, *requests((200, 50))]
    asked[-1]["id"] = "long"
    memory = ("hw.runtime_memory=0", "hw.device_memory=1MB", "pipeline.prefill_tokens=4096")
    run_requests(tmp_path, model, asked, *memory)
    assert read_results(tmp_path) == generate(model, UNEVEN)
    (error,) = read_lines(tmp_path / "errors.jsonl")
    assert (error["line"], error["id"]) == (5, "long")
    assert "come to 250 tokens, and 1MB (as set) hold at most 249 of a sequence" in error["error"]
