"""Runs the engine in this process, the way the command does, and reads what it left behind."""

import json
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from klotski import app, schema

__all__ = ["read_lines", "read_results", "run_engine", "write_requests"]


def run_engine(folder: Path, *overrides: str) -> Path:
    """One run into `folder`; raises what ended it."""
    schema.register(app.config_folder())
    with initialize_config_dir(version_base="1.3", config_dir=str(app.config_folder())):
        composed = compose("config", overrides=list(overrides))
    app.run(composed, folder)
    return folder


def write_requests(file: Path, requests: list[dict[str, Any]]) -> Path:
    """A JSONL workload."""
    file.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return file


def read_lines(file: Path) -> list[dict[str, Any]]:
    """A JSONL file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def read_results(run: Path) -> dict[str, list[int]]:
    """Output tokens by request id."""
    return {line["id"]: line["token_ids"] for line in read_lines(run / "results.jsonl")}
