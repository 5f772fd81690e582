"""Folders as runs and sweeps leave them."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

__all__ = ["METRICS", "write_experts", "write_run", "write_sweep"]

Settings = Mapping[str, Any]

PIPELINES: dict[str, dict[str, Any]] = {
    "sequential": {"n_batches": "1", "prefetch": "none"},
    "overlap": {"n_batches": "auto", "prefetch": "layer"},
    "klotski": {"n_batches": "auto", "prefetch": "hot"},
    "expert_cache": {"n_batches": "1", "prefetch": "hot"},
}
PLACEMENTS = {"expert_cache": "lfu"}  # that come with a pipeline
CONFIG: dict[str, Any] = {
    "model": {"name": "tiny", "path": "bundled"},
    "hw": {"name": "auto"},
    "placement": {"name": "none"},
    "pipeline": {"name": "klotski", "batch_size": "auto", "predictor": "correlation", **PIPELINES["klotski"]},
    "workload": {"name": "synthetic", "limit": None, "seed": 0},
    "events": True,
}
METRICS: dict[str, Any] = {
    "status": "ok",
    "error": None,
    "mode": "measured",
    "num_requests": 32,
    "elapsed_time": 5.0,
    "output_tokens_per_second": 100.0,
    "prefill_seconds": 1.0,
    "decode_seconds": 4.0,
    "decode_tokens_per_second": 120.0,
    "bytes_moved": {"disk": 1_000_000},
    "lane_busy_seconds": {"disk": 2.0, "compute": 4.0},
    "bubble_fraction": 0.1,
    "bound": {
        "resource": "disk",
        "seconds": 2.5,
        "efficiency": 0.5,
        "sweeps": {
            "compute": {"count": 1, "elapsed_time": 1.0, "busy": 0.9, "bubble": 0.1},
            "disk": {"count": 9, "elapsed_time": 4.0, "busy": 0.5, "bubble": 0.1},
        },
    },
    "peak_memory": {"process": 500_000_000, "device": 400_000_000, "host": 900_000_000},
    "prefetch": {
        "requested": 20,
        "used": 18,
        "hit_rate": 0.9,
        "named": 20,
        "among_hottest": 0.75,
        "first_sweep": {"requested": 2, "used": 1, "hit_rate": 0.5, "named": 2, "among_hottest": 0.5},
        "layers": [
            {"layer": 0, "requested": 0, "used": 0, "named": 0, "among_hottest": 0.0},
            {"layer": 1, "requested": 10, "used": 8, "named": 10, "among_hottest": 0.7},
            {"layer": 2, "requested": 10, "used": 10, "named": 10, "among_hottest": 0.8},
        ],
    },
    "plan": {"n_batches": 4, "batch_size": 8, "next_resource": "a link twice as fast"},
}


def write_run(
    folder: Path, settings: Settings | None = None, metrics: Settings = METRICS, *, rate: float | None = None
) -> Path:
    """One run with these overrides; `rate`: its output tokens per second, if not those of `metrics`."""
    settings = settings or {}
    config = deepcopy(CONFIG)
    for key, value in settings.items():
        group, _, name = key.partition(".")
        config[group] |= {name: value} if name else {"name": value} | PIPELINES.get(value, {})
        config["placement"]["name"] = PLACEMENTS.get(value, config["placement"]["name"])
    hydra = folder / ".hydra"
    hydra.mkdir(parents=True)
    (hydra / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (hydra / "overrides.yaml").write_text(yaml.safe_dump([f"{key}={value}" for key, value in settings.items()]))
    chosen = {} if rate is None else {"output_tokens_per_second": rate}
    (folder / "metrics.json").write_text(json.dumps({**metrics, **chosen}))
    return folder


def write_sweep(folder: Path, jobs: Sequence[Settings], rates: Sequence[float] | None = None) -> Path:
    """One job for each mapping of overrides."""
    for number, settings in enumerate(jobs):
        write_run(folder / str(number), settings, rate=rates[number] if rates else None)
    return folder


def write_experts(run: Path, tokens: Sequence[Sequence[int]], stability: Sequence[float | None], top_k: int) -> None:
    """The `experts.json` of a run."""
    content = {"schema": 1, "top_k": top_k, "tokens": tokens, "stability": stability}
    (run / "experts.json").write_text(json.dumps(content))
