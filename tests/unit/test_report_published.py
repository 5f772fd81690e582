"""Predictions beside what was published."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from klotski.assets import PUBLISHED
from klotski.report import collect
from klotski.report.published import Key, compare, print_comparison, published, write_comparison
from tests.unit.runs import METRICS, write_run


def predicted(folder: Path, rate: float, *, hw: str, pipeline: str = "klotski", tokens: int = 512, **more: Any) -> None:
    """A run of Mixtral in 15 batches of 16."""
    settings = {
        "model": "mixtral",
        "hw": hw,
        "pipeline": pipeline,
        "workload.input_tokens": tokens,
        "workload.output_tokens": 32,
    }
    metrics = METRICS | {"mode": "predicted", "plan": {"n_batches": 15, "batch_size": 16}} | more
    write_run(folder, settings, metrics, rate=rate)


def test_a_prediction_stands_beside_what_was_published_of_the_same_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predicted(tmp_path / "0", 10.8, hw="rtx3090_published")
    predicted(tmp_path / "1", 43.2, hw="rtx3090")
    predicted(tmp_path / "2", 16.206, hw="rtx3090_published", pipeline="flexgen")
    found = compare(collect([tmp_path]))
    assert {each.source for each in found} == {"figure 10"}
    key = Key("mixtral", "rtx3090", "klotski", 15, 16)
    mine = next(each for each in found if each.key == key)
    assert (mine.published, mine.theirs, mine.ours) == (10.804, 10.8, 43.2)
    print_comparison(found)
    said = capsys.readouterr().out
    assert "its habits: 2 predictions, off by 1.41x in the geometric mean" in said
    assert "ours: 1 predictions, 4.00x what was published" in said
    (file,) = write_comparison(found, tmp_path)
    assert len(file.read_text().splitlines()) == 1 + len(found)


def test_other_lengths_measured_runs_and_failed_ones_are_not_compared(tmp_path: Path) -> None:
    predicted(tmp_path / "0", 10.8, hw="rtx3090", tokens=64)
    predicted(tmp_path / "1", 10.8, hw="rtx3090", mode="measured")
    predicted(tmp_path / "2", 10.8, hw="rtx3090", status="failed")
    predicted(tmp_path / "3", 10.8, hw="rtx4090")
    assert compare(collect([tmp_path])) == []


def test_every_figure_names_a_model_a_machine_and_a_strategy_of_ours() -> None:
    conf = Path(__file__).parents[2] / "conf"
    names = {
        group: {yaml.safe_load(file.read_text())["name"] for file in (conf / group).rglob("*.yaml")}
        for group in ("model", "hw", "pipeline")
    }
    figures = list(published(PUBLISHED))
    assert len(figures) == 90
    for _, key, rate in figures:
        assert rate > 0
        assert key.model in names["model"]
        assert {key.hw, f"{key.hw}_published"} <= names["hw"]
        assert key.pipeline in names["pipeline"]
