"""The shapes in the package are those of the models they are named after."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from klotski import app, schema
from klotski.assets import SHAPES
from klotski.executors.facts import gather_facts, outline_of
from klotski.executors.outline import read_outline
from klotski.model import open_model

PARAMETERS = {  # in billions, as published
    "deepseek-v2-lite": 15.7,
    "deepseek-v3": 671,
    "glm-4.5-air": 106.9,
    "gpt-oss-120b": 116.8,
    "gpt-oss-20b": 20.9,
    "mixtral-8x22b": 140.6,
    "mixtral-8x7b": 46.7,
    "olmoe-1b-7b": 6.92,
    "qwen3-235b-a22b": 235.1,
    "qwen3-30b-a3b": 30.5,
}


def test_every_shape_is_known() -> None:
    assert {folder.name for folder in SHAPES.iterdir() if folder.is_dir()} == PARAMETERS.keys()


@pytest.mark.parametrize(("name", "billions"), PARAMETERS.items())
def test_a_shape_has_as_many_parameters_as_its_model(name: str, billions: float) -> None:
    model = open_model(SHAPES / name, None, is_dummy=True)
    count = sum(parameter.numel() for parameter in model.shell.model.parameters())
    assert count / 1e9 == pytest.approx(billions, rel=0.002)
    opened = outline_of(model)
    as_it_is = replace(opened, facts=replace(opened.facts, stored_bytes=opened.facts.block_bytes))
    assert read_outline(SHAPES / name) == as_it_is, "an outline is out of date; make outlines"
    assert model.context == json.loads((SHAPES / name / "config.json").read_text())["max_position_embeddings"]


def test_without_cache_blocking_an_outline_says_what_a_model_opened_for_a_gpu_does() -> None:
    for name in ("mixtral-8x7b", "gpt-oss-20b"):
        known = read_outline(SHAPES / name)
        opened = gather_facts(open_model(SHAPES / name, None, is_dummy=True, cache_blocking=False))
        assert known is not None
        assert known.facts.without_cache_blocking() == replace(opened, stored_bytes=opened.block_bytes)
        assert opened.expanded_bytes > 0 == opened.slice_tokens, (
            "keys and values are repeated for heads that share them"
        )


def test_an_outline_of_another_config_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "olmoe"
    shutil.copytree(SHAPES / "olmoe-1b-7b", folder)
    assert read_outline(folder) is not None
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_experts_per_tok": 4}))
    assert read_outline(folder) is None


def test_every_model_with_a_shape_names_one_that_is_there() -> None:
    schema.register(app.config_folder())
    named = set()
    with initialize_config_dir(version_base="1.3", config_dir=str(app.config_folder())):
        for file in (app.config_folder() / "model").glob("*.yaml"):
            shape = compose("config", overrides=[f"model={file.stem}"]).model.shape
            named |= {shape} - {""}
    assert named == PARAMETERS.keys()
