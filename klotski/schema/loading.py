"""From what Hydra composed to a `RunConfig`, or a `ConfigError` that names the key."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from klotski.core import LEAST_TEMPERATURE, OnDemand, Order, Prefetch, is_temperature
from klotski.errors import ConfigError
from klotski.refusals import did_you_mean, explain
from klotski.schema.configs import (
    ExecutorConfig,
    JsonlWorkload,
    ModelConfig,
    PipelineConfig,
    PlacementConfig,
    RunConfig,
    SyntheticWorkload,
    WorkloadConfig,
)
from klotski.schema.hardware import HwConfig, check_hardware
from klotski.units import parse_count, parse_size

__all__ = ["is_overridden", "load", "register", "save"]


def register(configs: Path) -> None:
    """Make the schemas known to Hydra, and what configs interpolate; may be called again.

    `${pid:}` is the process id, `${options:}` a list of all groups and options in `configs`. `${product:A,B}` is of two
    numbers, `${pick:KEY,{A:B},C}` is what the key has, or else C.
    """
    OmegaConf.register_new_resolver("pid", os.getpid, replace=True)
    OmegaConf.register_new_resolver("product", lambda one, other: int(one) * int(other), replace=True)
    OmegaConf.register_new_resolver("pick", lambda key, known, other: known.get(key, other), replace=True)
    OmegaConf.register_new_resolver("options", partial(list_options, configs), replace=True)
    store = ConfigStore.instance()
    store.store(group="schema", name="run", node=RunConfig)
    for group, name, node in (
        ("model", "model", ModelConfig),
        ("hw", "hw", HwConfig),
        ("placement", "placement", PlacementConfig),
        ("pipeline", "pipeline", PipelineConfig),
        ("executor", "executor", ExecutorConfig),
        ("workload", "workload_jsonl", JsonlWorkload),
        ("workload", "workload_synthetic", SyntheticWorkload),
    ):
        store.store(group=f"{group}/schema", name=name, node=node)


def list_options(configs: Path) -> str:
    """Every option of every group, with the first sentence of its file's opening comment."""
    lines = []
    groups = [each.name for each in fields(RunConfig) if is_dataclass(each.type)]
    for group in [*groups, "paper", "experiment"]:
        lines.append(group)
        for file in sorted((configs / group).glob("*.yaml")):
            comment = " ".join(line[2:] for line in file.read_text().splitlines() if line.startswith("# "))
            sentence = re.split(r"\.(?:\s|$)", comment.removeprefix("@package _global_ "))[0]
            lines.append(f"  {file.stem:<18} {sentence}")
    return "\n".join(lines)


def load(composed: DictConfig) -> RunConfig:
    """The typed form of what Hydra composed.

    Raises:
        ConfigError: a key does not exist, has no value or does not fit; the message names it.
    """
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise explain(error, overrides()) from error
    assert isinstance(config, RunConfig)
    for key, siblings in unknown_keys(composed, config):
        raise ConfigError(f"{key} is not a setting; {did_you_mean(key.rpartition('.')[2], siblings)}")
    check(config)
    return config


def save(composed: DictConfig, folder: Path) -> None:
    """Write `.hydra/`: what a run was composed of. Hydra itself would overwrite that of an earlier run in the folder.

    Raises:
        ConfigError: it could not be written.
    """
    if not HydraConfig.initialized():
        return
    hydra = HydraConfig.get()
    parts = {"config": composed, "hydra": OmegaConf.create({"hydra": hydra}), "overrides": hydra.overrides.task}
    try:
        (folder / ".hydra").mkdir(exist_ok=True)
        for name, part in parts.items():
            (folder / ".hydra" / f"{name}.yaml").write_text(OmegaConf.to_yaml(part))
    except OSError as error:
        raise explain(error) from error


def is_overridden(key: str) -> bool:
    """Whether the command line sets a key itself, and not the option of its group."""
    return any(text.lstrip("+").partition("=")[0] == key for text in overrides())


def overrides() -> list[str]:
    """What the command line sets, as it was written; nothing where Hydra was not started by it."""
    if not HydraConfig.initialized():
        return []
    task: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return [str(text) for text in task]


def check(config: RunConfig) -> None:
    """Refuse values that fit their type but nothing else."""
    for key, path in (("model.path", config.model.path), ("workload.path", getattr(config.workload, "path", "-"))):
        if not path:
            raise ConfigError(f"{key} has no value and needs one; set {key}=...")
    parse_size("model.auto_device_memory", config.model.auto_device_memory)
    check_hardware(config.hw)
    parse_count("hw.threads", config.hw.threads)
    parse_count("pipeline.prefill_tokens", config.pipeline.prefill_tokens)
    n_batches = parse_count("pipeline.n_batches", config.pipeline.n_batches)
    parse_count("pipeline.batch_size", config.pipeline.batch_size)
    parse_count("pipeline.hot_experts", config.pipeline.hot_experts)
    parse_count("pipeline.expert_slots", config.pipeline.expert_slots)
    if config.pipeline.on_demand is OnDemand.lazy and config.pipeline.prefetch is not Prefetch.none:
        raise ConfigError(
            f"pipeline.on_demand=lazy fetches a block when its turn comes and cannot be combined with "
            f"pipeline.prefetch={config.pipeline.prefetch.value}; set pipeline.on_demand=eager or "
            "pipeline.prefetch=none"
        )
    if config.pipeline.on_demand is OnDemand.lazy and config.pipeline.order is Order.arrival:
        raise ConfigError(
            "pipeline.order=arrival needs experts on their way to choose from, and pipeline.on_demand=lazy sends "
            "for one at a time; set pipeline.on_demand=eager or pipeline.order=index"
        )
    if n_batches is not None and n_batches > 4096:
        raise ConfigError(f"pipeline.n_batches={n_batches} is more than the 4096 batches a group may have")
    check_workload(config.workload)
    if config.prometheus is not None and not 1 <= config.prometheus <= 65535:
        raise ConfigError(
            f"prometheus={config.prometheus} is not a port; set one between 1 and 65535, or null for none"
        )


def check_workload(workload: WorkloadConfig) -> None:
    """Refuse lengths, counts and temperatures that no run could have."""
    positive = ("limit", "max_tokens", "num_requests", "input_tokens", "output_tokens")
    for name in positive:
        value = getattr(workload, name, None)
        if value is not None and value < 1:
            raise ConfigError(f"workload.{name}={value} must be at least 1")
    if not is_temperature(workload.temperature):
        raise ConfigError(
            f"workload.temperature={workload.temperature} must be 0 (greedy) or at least {LEAST_TEMPERATURE}"
        )


def unknown_keys(composed: Mapping[Any, Any], config: object, prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Keys that `+` added beside the schema, each with the keys that exist there."""
    assert is_dataclass(config)
    known = [each.name for each in fields(config)]
    for key in composed:
        if key not in known:
            yield f"{prefix}{key}", known
        elif is_dataclass(child := getattr(config, key)):
            yield from unknown_keys(composed[key], child, f"{prefix}{key}.")
