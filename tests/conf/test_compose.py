"""Everything in conf/ composes, and the command answers questions about it at once."""

import json
import resource
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from klotski import app, schema
from tests.architectures import save_checkpoint
from tests.cli.process import run_klotski, run_python, short_requests
from tests.engine import read_results

CONF = app.config_folder()
GROUPS = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name != "hydra")
OPTIONS = sorted((group, file.stem) for group in GROUPS for file in (CONF / group).glob("*.yaml"))
FOR_THE_USER_TO_SET = {"model.path", "workload.path"}


def compose_config(*overrides: str) -> DictConfig:
    schema.register(CONF)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("config", overrides=list(overrides))
        assert isinstance(config, DictConfig)
        return config


def composed(*overrides: str) -> DictConfig:
    """The config of these overrides, with values for what only a user can know."""
    missing = OmegaConf.missing_keys(compose_config(*overrides))
    assert missing <= FOR_THE_USER_TO_SET
    return compose_config(*overrides, *(f"{key}=somewhere" for key in sorted(missing)))


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_loads(group: str, option: str) -> None:
    config = schema.load(composed(f"{group}={option}"))
    assert isinstance(config, schema.RunConfig)
    if group == "paper":
        assert config.paper == option
    elif group != "experiment":
        assert getattr(config, group).name == option


def test_every_pair_of_pipeline_and_workload_composes_and_loads() -> None:
    names = {group: [option for other, option in OPTIONS if other == group] for group in GROUPS}
    for pipeline in names["pipeline"]:
        for workload in names["workload"]:
            config = schema.load(composed(f"pipeline={pipeline}", f"workload={workload}"))
            assert (config.pipeline.name, config.workload.name) == (pipeline, workload)


def test_the_default_config_loads() -> None:
    config = schema.load(compose_config())
    assert (config.model.name, config.pipeline.name, config.workload.name) == ("tiny", "klotski", "prompts")


def test_what_the_process_takes_by_itself_may_be_nothing() -> None:
    assert schema.load(compose_config("hw.runtime_memory=0")).hw.runtime_memory == "0"


def test_help_names_every_group_and_option(tmp_path: Path) -> None:
    finished = run_klotski("--help", cwd=tmp_path)
    assert (finished.status, finished.err) == (0, "")
    listed: dict[str, list[str]] = {}
    for line in finished.out.splitlines():
        if line in GROUPS:
            options = listed[line] = []
        elif listed and line.startswith("  "):
            options.append(line.split()[0])
        elif listed:
            break
    assert {group: sorted(options) for group, options in listed.items()} == {
        group: [option for other, option in OPTIONS if other == group] for group in GROUPS
    }


def test_cfg_prints_the_config_without_running_it(tmp_path: Path) -> None:
    finished = run_klotski("--cfg", "job", "hw.device_memory=3GB", cwd=tmp_path)
    assert (finished.status, finished.err) == (0, "")
    printed = OmegaConf.create(finished.out)
    assert set(GROUPS) - {"experiment"} <= set(printed)
    assert printed.hw.device_memory == "3GB"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("question", [["--help"], ["--cfg", "job"], ["pipelin=klotski"]])
def test_questions_are_answered_without_torch_and_at_once(question: list[str], tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    finished = run_python("-X", "importtime", "-m", "klotski", *question, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    imported = {line.rpartition("|")[2].strip() for line in finished.err.splitlines() if line.startswith("import time")}
    assert {"klotski.app", "hydra"} <= imported
    assert not imported & {"torch", "transformers", "numpy"}
    # Processor time, because what else the machine does is not the command's fault.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_a_sweep_over_strategies_leaves_a_run_for_each_with_the_same_tokens(tmp_path: Path) -> None:
    finished = run_klotski(
        "-m",
        "pipeline=sequential,overlap,klotski",
        "model=custom",
        f"model.path={save_checkpoint('mixtral', tmp_path / 'model')}",
        "hw.device_memory=2MB",
        "hw.runtime_memory=0",
        "workload=jsonl",
        f"workload.path={short_requests(tmp_path / 'requests.jsonl', 3)}",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
        cwd=tmp_path,
    )
    assert finished.status == 0, finished.err
    runs = sorted(folder.parent for folder in (tmp_path / "sweep").glob("*/metrics.json"))
    assert [run.name for run in runs] == ["0", "1", "2"]
    metrics = [json.loads((run / "metrics.json").read_text()) for run in runs]
    assert [each["status"] for each in metrics] == ["ok"] * 3
    results = [read_results(run) for run in runs]
    assert sorted(results[0]) == ["r0", "r1", "r2"]
    assert results[0] == results[1] == results[2]
