"""What a run leaves of its machine can be read: it runs where it was made, and is predicted anywhere else."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from klotski.executors.torch import TorchExecutor
from tests.architectures import save_checkpoint
from tests.cli.process import run_klotski, short_requests
from tests.engine import run_engine
from tests.tiers.delayed import DelayedDevice


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of experts of a few kilobytes, with blocks that stream."""
    folder = tmp_path_factory.mktemp("model")
    requests = short_requests(folder / "requests.jsonl", 12)
    return [
        "model=custom",
        f"model.path={save_checkpoint('mixtral', folder)}",
        "workload=jsonl",
        f"workload.path={requests}",
    ]


def measured(run: Path) -> dict[str, Any]:
    left: dict[str, Any] = yaml.safe_load((run / "hw" / "measured.yaml").read_text())
    return left


def plan_of(run: Path) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((run / "plan.json").read_text())
    return plan


def test_a_run_on_cores_stays_there_and_is_predicted_elsewhere_within_the_same_budget(
    settings: list[str], tmp_path: Path
) -> None:
    run = run_engine(tmp_path / "run", *settings, "hw.device_memory=2MB", "hw.runtime_memory=0")
    left = measured(run)
    assert (left["gpu"], left["device_memory"], left["runtime_memory"]) == ("none", "2000000B", "0B")
    assert "link_bandwidth" not in left
    again = ["--config-dir", str(run), "hw=measured", *settings, "history=none"]
    finished = run_klotski(*again, "hydra.run.dir=here", cwd=tmp_path)
    assert (finished.status, json.loads((tmp_path / "here" / "metrics.json").read_text())["mode"]) == (0, "measured")
    file = run / "hw" / "measured.yaml"
    file.write_text(re.sub("(?m)^host: .*", "host: another", file.read_text()))
    finished = run_klotski(*again, "hydra.run.dir=there", cwd=tmp_path)
    assert finished.status == 0, finished.err
    assert "predicted, not run: hw=measured is another machine than this one" in finished.err
    assert plan_of(tmp_path / "there")["budget"] == 2_000_000


def test_a_run_on_three_tiers_leaves_its_link_and_remembers_it(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("klotski.executors.create", lambda config: TorchExecutor(DelayedDevice(1, 0.0)))
    memory = ["hw=rtx4090", "hw.device_memory=2MB", "hw.runtime_memory=0", "hw.host_memory=30MB"]
    run = run_engine(tmp_path / "run", *settings, *memory, f"history={tmp_path / 'history'}", "placement=none")
    left, rates = measured(run), json.loads((run / "metrics.json").read_text())["rates"]
    assert (left["device_memory"], left["host_memory"]) == ("2000000B", "30000000B")
    assert float(left["link_bandwidth"].removesuffix("MB/s").removesuffix("GB/s")) > 0
    assert rates["link"] > 0
    lines = (run / "hw" / "measured.yaml").read_text().splitlines()
    whys = dict(re.findall(r"^(\w+): \S+  # (.*)$", "\n".join(lines), re.MULTILINE))
    assert (whys["link_bandwidth"], whys["compute_rate"]) == ("measured by this run",) * 2
    assert (whys["disk_bandwidth"], whys["memory_bandwidth"]) == ("of hw=rtx4090",) * 2
