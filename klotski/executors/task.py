"""What is to be run: the model outlined, the requests read, the plan made. No weight is read."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from klotski.assets import BUNDLED, SHAPES, TINY
from klotski.core import Prediction, Request
from klotski.executors.history import History
from klotski.executors.outline import Outline
from klotski.executors.planning import find_terms, is_described, plan_run
from klotski.lanes import Lane
from klotski.pipeline import Ahead, Caches, Policy, Predictor, Sweeper, Worker
from klotski.planner import ModelFacts, Plan, Rates, Terms
from klotski.schema import LoadFormat, RunConfig, has_gpu, names_a_machine
from klotski.telemetry import RunLog
from klotski.weights import Residency, find_local, resolve
from klotski.weights.finding import find_folder
from klotski.workload import Encoder, load_requests

__all__ = ["Task", "find_checkpoint", "find_shape", "foresees", "is_dummy", "make_sweeper", "prepare"]

logger = logging.getLogger(__name__)


class Task(NamedTuple):
    """What is to be run, planned, before any weight is read."""

    outline: Outline
    requests: list[Request]
    encoder: Encoder
    history: History
    terms: Terms
    plan: Plan

    @property
    def facts(self) -> ModelFacts:
        """Sizes and arithmetic of the model."""
        return self.terms.facts


def prepare(
    config: RunConfig,
    log: RunLog,
    folder: Path,
    outline: Outline,
    tokenizer: Any,
    measure: Callable[[], Rates | None],
    of_gpu: tuple[int, str] | None = None,
) -> Task:
    """Read the workload, and plan the run of the model in `folder`.

    `tokenizer`: None where it has none. `measure`: finds out what this machine reaches; None: it is not worth it.
    `of_gpu`: see `planning.grant`.
    """
    on_gpu = of_gpu is not None or has_gpu(config.hw)
    history = History(config.history, config.model.name, folder, on_gpu=on_gpu)
    encoder = Encoder(tokenizer, outline.vocab_size, outline.context)
    requests = load_requests(config.workload, encoder, log.error)
    if log.num_errors:
        logger.warning("%d requests cannot be run; errors.jsonl says why", log.num_errors)
    facts = outline.facts
    if foresees(config):
        facts = replace(facts, fixed_bytes=facts.fixed_bytes + outline.router_bytes)
    facts = replace(facts, shares=history.shares(facts.expert_counts, facts.top_k))
    known = None
    if not names_a_machine(config.hw):
        known = history.rates
        if (known is None or on_gpu) and not is_described(config):  # with a GPU, a run does not measure all of it
            measured = measure()
            known = known if measured is None else history.over(measured) or measured
    terms = find_terms(config, outline.dtype, facts, requests, known, of_gpu)
    return Task(outline, requests, encoder, history, terms, plan_run(terms))


def find_checkpoint(config: RunConfig) -> Path:
    """The model's folder."""
    model = config.model
    if model.path == BUNDLED:
        return TINY
    return resolve(model.path, with_weights=not is_dummy(config), made_by=model.made_by)


def find_shape(config: RunConfig) -> Path:
    """A folder with the model's config: the model's own, if it is here, or that of its shape."""
    model = config.model
    if model.shape and find_folder(model.path) is None and find_local(model.path) is None:
        return SHAPES / model.shape if (SHAPES / model.shape).is_dir() else Path(model.shape).expanduser()
    return find_checkpoint(config)


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
    *,
    ahead: Ahead,
    together: bool,
) -> Sweeper:
    """The sweep over this model with the config's strategy. `together`: see `Sweeper`."""
    strategy, plan = config.pipeline, task.plan
    policy = Policy(strategy.prefetch, plan.hot_experts, strategy.on_demand, strategy.order)
    experts = task.facts.expert_counts
    few, scored = plan.sequences, plan.scored_batches
    return Sweeper(
        experts, policy, predictor, residency, compute, worker, caches, few, scored, ahead=ahead, together=together
    )
