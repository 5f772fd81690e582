"""The structured configs, which with refusals.py are the only room that knows OmegaConf.

`register()` makes them known to Hydra; `load()` turns what Hydra composed into a `RunConfig`, or raises a `ConfigError`
that names the key.
"""

from klotski.schema.configs import (
    DType,
    ExecutorConfig,
    JsonlWorkload,
    LoadFormat,
    ModelConfig,
    PipelineConfig,
    PlacementConfig,
    RunConfig,
    SyntheticWorkload,
    WorkloadConfig,
)
from klotski.schema.hardware import HwConfig, has_gpu, names_a_machine, read_hardware
from klotski.schema.loading import is_overridden, load, register, save

__all__ = [
    "DType",
    "ExecutorConfig",
    "HwConfig",
    "JsonlWorkload",
    "LoadFormat",
    "ModelConfig",
    "PipelineConfig",
    "PlacementConfig",
    "RunConfig",
    "SyntheticWorkload",
    "WorkloadConfig",
    "has_gpu",
    "is_overridden",
    "load",
    "names_a_machine",
    "read_hardware",
    "register",
    "save",
]
