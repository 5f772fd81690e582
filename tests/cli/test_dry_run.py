"""`dry_run=true`: the plan, before anything is loaded."""

import json
from pathlib import Path

from tests.cli.process import run_klotski


def test_a_dry_run_shows_the_plan_and_why_and_loads_nothing(tmp_path: Path) -> None:
    finished = run_klotski("dry_run=true", "pipeline.n_batches=3", "hydra.run.dir=run", cwd=tmp_path)
    assert (finished.status, finished.err.count("Traceback")) == (0, 0), finished.err
    plan, metrics = (json.loads((tmp_path / "run" / f"{name}.json").read_text()) for name in ("plan", "metrics"))
    cells = [[cell.strip() for cell in line.strip("│┃").split("│")] for line in finished.out.splitlines()]
    rows = {row[0]: row[1:] for row in cells if len(row) > 1}
    assert rows["n batches"] == [str(plan["n_batches"]), "as set"] == ["3", "as set"]
    assert rows["batch size"][0] == str(plan["batch_size"])
    assert {f"({number})" for number in (4, 5, 6, 7)} <= {name.split()[0] for name in rows if name}
    assert " ".join(plan["explanation"].split()) in " ".join(finished.out.split())
    assert (metrics["status"], metrics["mode"]) == ("ok", "predicted")
    assert (metrics["num_requests"], metrics["bytes_moved"]) == (0, {})
    assert not (tmp_path / "run" / "results.jsonl").read_text()


def test_random_weights_of_a_shape_in_the_package_need_no_download(tmp_path: Path) -> None:
    overrides = ("model=olmoe", "model.load_format=dummy", "hw.device_memory=20GB", "dry_run=true")
    finished = run_klotski(*overrides, "workload=synthetic", "hydra.run.dir=run", cwd=tmp_path)
    assert (finished.status, finished.err.count("Traceback")) == (0, 0), finished.err
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["residents_reason"] == "there is no file to stream from"
    assert plan["streamed_bytes"] == 0


def test_a_dry_run_of_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    finished = run_klotski("dry_run=true", "hw.device_memory=1MB", "hydra.run.dir=run", cwd=tmp_path)
    assert finished.status == 1
    assert "hw.device_memory=1MB" in finished.err
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["status"] == "failed"
