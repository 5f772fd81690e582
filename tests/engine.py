"""Runs the engine in this process, the way the command does, and reads what it left behind."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from klotski import app, schema
from klotski.executors import rates

__all__ = ["read_lines", "read_results", "run_engine", "run_requests", "sample_little", "write_requests"]


def run_engine(folder: Path, *overrides: str) -> Path:
    """One run into `folder`; raises what ended it."""
    schema.register(app.config_folder())
    with initialize_config_dir(version_base="1.3", config_dir=str(app.config_folder())):
        composed = compose("config", overrides=list(overrides))
    app.run(composed, folder)
    return folder


def run_requests(folder: Path, model: Path, requests: list[dict[str, Any]], *overrides: str) -> dict[str, Any]:
    """One run of a model over requests; returns its metrics."""
    file = write_requests(folder / "requests.jsonl", requests)
    run_engine(folder, "model=custom", f"model.path={model}", "workload=jsonl", f"workload.path={file}", *overrides)
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics


def sample_little(patch: pytest.MonkeyPatch) -> None:
    """Let runs measure for moments only what the machine reaches, where nobody asks for it."""
    for name, value in {"ROUNDS": 1, "SECONDS": 0.001, "FEW_SECONDS": 0.001, "WAKING": 1}.items():
        patch.setattr(rates, name, value)


def write_requests(file: Path, requests: list[dict[str, Any]]) -> Path:
    """A JSONL workload."""
    file.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return file


def read_lines(file: Path) -> list[dict[str, Any]]:
    """A JSONL file."""
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def read_results(run: Path) -> dict[str, list[int]]:
    """Output tokens by request id."""
    return {line["id"]: line["token_ids"] for line in read_lines(run / "results.jsonl")}
