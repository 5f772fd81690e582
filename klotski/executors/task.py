"""What is to be run: the model opened, the requests read, the plan made. No weight is read."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from klotski.assets import BUNDLED, SHAPES, TINY
from klotski.core import Prediction, Request
from klotski.executors.devices import CpuDevice, Device
from klotski.executors.facts import gather_facts
from klotski.executors.history import History
from klotski.executors.machine import machine_rates
from klotski.executors.planning import find_terms, is_described, plan_run
from klotski.lanes import Lane
from klotski.model import OpenModel, open_model
from klotski.pipeline import Caches, Policy, Predictor, Sweeper, Worker
from klotski.planner import ModelFacts, Plan, Rates, Terms
from klotski.schema import DType, LoadFormat, RunConfig, is_elsewhere
from klotski.telemetry import RunLog
from klotski.weights import Residency, find_local, has_weights, resolve
from klotski.workload import Encoder, RoughTokenizer, load_requests

__all__ = ["Task", "foresees", "is_dummy", "make_sweeper", "prepare"]

logger = logging.getLogger(__name__)

DTYPES = {DType.auto: None, DType.float32: torch.float32, DType.bfloat16: torch.bfloat16}


class Task(NamedTuple):
    """What is to be run, planned, before any weight is read."""

    model: OpenModel
    requests: list[Request]
    encoder: Encoder
    history: History
    terms: Terms
    plan: Plan

    @property
    def facts(self) -> ModelFacts:
        """Sizes and arithmetic of the model."""
        return self.terms.facts


def prepare(config: RunConfig, log: RunLog, device: Device | None = None) -> Task:
    """Open the model, read the workload, and plan. `device`: where it will run; None: nowhere, it is predicted."""
    is_predicted = device is None
    folder = find_shape(config) if is_predicted or is_dummy(config) else find_checkpoint(config)
    shape_only = is_dummy(config) or (is_predicted and not has_weights(folder))
    model = open_model(folder, DTYPES[config.model.dtype], is_dummy=shape_only)
    history = History(config.history, config.model.name, folder)
    tokenizer = model.tokenizer or (RoughTokenizer() if is_predicted else None)
    encoder = Encoder(tokenizer, model.config.get_text_config().vocab_size, model.context)
    requests = load_requests(config.workload, encoder, log.error)
    if log.num_errors:
        logger.warning("%d requests cannot be run; errors.jsonl says why", log.num_errors)
    facts = gather_facts(model, foresees=foresees(config))
    if shape_only and is_predicted:  # what has no file is taken to be read as it is
        facts = replace(facts, stored_bytes=facts.block_bytes)
    facts = replace(facts, shares=history.shares(model.shell.expert_counts, model.shell.top_k))
    own = device.memory() if device is not None else None
    terms = find_terms(config, model, facts, requests, find_rates(config, model, history, device or CpuDevice()), own)
    return Task(model, requests, encoder, history, terms, plan_run(terms))


def find_rates(config: RunConfig, model: OpenModel, history: History, device: Device) -> Rates | None:
    """What this machine is known to reach, if it is the one that the config describes."""
    if is_elsewhere(config):
        return None
    known = None if device.has_host_tier else history.rates  # which were reached on the cores
    return known or (None if is_described(config) else machine_rates(config.history, model, device))


def find_checkpoint(config: RunConfig) -> Path:
    """The model's folder."""
    model = config.model
    if model.path == BUNDLED:
        return TINY
    return resolve(model.path, with_weights=not is_dummy(config), made_by=model.made_by)


def find_shape(config: RunConfig) -> Path:
    """A folder with the model's config: the model's own, if it is here, or that of its shape."""
    model = config.model
    file = Path(model.path).expanduser()
    if model.shape and find_local(model.path) is None:
        return SHAPES / model.shape if (SHAPES / model.shape).is_dir() else Path(model.shape).expanduser()
    return file.parent if file.is_file() else find_checkpoint(config)


def is_dummy(config: RunConfig) -> bool:
    """Whether weights are made up."""
    return config.model.load_format is LoadFormat.dummy


def foresees(config: RunConfig) -> bool:
    """Whether routers are asked early."""
    return config.pipeline.predictor is Prediction.lookahead


def make_sweeper(
    config: RunConfig,
    task: Task,
    predictor: Predictor,
    residency: Residency,
    compute: Lane,
    worker: Worker,
    caches: Caches,
) -> Sweeper:
    """The sweep over this model with the config's strategy."""
    strategy, plan = config.pipeline, task.plan
    policy = Policy(strategy.prefetch, plan.hot_experts, strategy.on_demand, strategy.order)
    experts = task.facts.expert_counts
    return Sweeper(experts, policy, predictor, residency, compute, worker, caches, plan.sequences, plan.scored_batches)
