"""The paper's tables, predicted with its implementation's habits, beside what it published. Minutes."""

import csv
from math import exp, log
from pathlib import Path
from statistics import mean

import pytest

from tests.cli.process import start_klotski

pytestmark = pytest.mark.slow

PATIENCE = 900.0  # seconds
HABITS = "predicted_with_its_habits"
STEPS = ["one_batch", "flexgen", "hot_experts", "klotski"]  # of the ablation, in their order


def predict(experiment: str, folder: Path) -> list[dict[str, str]]:
    """The rows of an experiment beside the published ones."""
    arguments = ["-m", f"experiment={experiment}", "events=false", "history=none", f"hydra.sweep.dir={folder}"]
    with start_klotski(*arguments, cwd=folder.parent) as process:
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    with (folder / "published.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("experiment", ["paper_fig10", "paper_fig14"])
def test_klotski_and_flexgen_are_met_within_a_third(experiment: str, tmp_path: Path) -> None:
    rows = [row for row in predict(experiment, tmp_path / "sweep") if row["pipeline"] in ("klotski", "flexgen")]
    off = [abs(log(float(row[HABITS]) / float(row["published"]))) for row in rows]
    assert len(rows) > 20
    assert exp(mean(off)) < 1.35


def test_the_steps_of_the_ablation_come_out_in_their_order(tmp_path: Path) -> None:
    rows = predict("paper_table3", tmp_path / "sweep")
    for case in {(row["model"], row["hw"]) for row in rows}:
        rates = {row["pipeline"]: float(row[HABITS]) for row in rows if (row["model"], row["hw"]) == case}
        assert sorted(STEPS, key=rates.__getitem__) == STEPS, (case, rates)
