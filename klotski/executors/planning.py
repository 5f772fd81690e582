"""What a config grants and wishes, as a plan: the budget, the choices that are made already, and what is said of it."""

import logging
from collections.abc import Sequence

from klotski.assets import BUNDLED
from klotski.core import Request
from klotski.model import OpenModel
from klotski.planner import Budget, Demand, ModelFacts, Plan, Wishes, free_memory, make_plan, runtime_memory
from klotski.schema import LoadFormat, RunConfig
from klotski.units import format_size, parse_count, parse_size
from klotski.workload import in_batch_order

__all__ = ["describe", "plan_run"]

logger = logging.getLogger(__name__)


def plan_run(config: RunConfig, facts: ModelFacts, requests: Sequence[Request]) -> Plan:
    """The plan for these requests, within the budget that the config grants."""
    granted = parse_size("hw.device_memory", config.hw.device_memory)
    own = parse_size("model.auto_device_memory", config.model.auto_device_memory)
    runtime = parse_size("hw.runtime_memory", config.hw.runtime_memory, least=0)
    if runtime is None:
        runtime = runtime_memory()
    if granted is not None:
        budget = Budget(granted, "as set", runtime)
    elif own is not None and config.model.path == BUNDLED:
        reason = f"{format_size(own)} beside the interpreter, so that model={config.model.name} has to stream"
        budget = Budget(own + runtime, reason, runtime)
    else:
        budget = Budget(*free_memory(), runtime)
    wishes = Wishes(
        parse_count("pipeline.n_batches", config.pipeline.n_batches),
        parse_count("pipeline.batch_size", config.pipeline.batch_size),
        parse_count("pipeline.hot_experts", config.pipeline.hot_experts),
        parse_count("pipeline.prefill_tokens", config.pipeline.prefill_tokens),
        config.placement.residents,
        config.model.load_format is LoadFormat.dummy,
    )
    lengths = [(len(request.prompt), request.max_tokens) for request in in_batch_order(requests)]
    return make_plan(facts, Demand(lengths), budget, wishes)


def describe(config: RunConfig, model: OpenModel, plan: Plan, num_requests: int) -> None:
    """Say in two lines what is about to happen."""
    weights = model.fixed.slot_bytes + sum(layout.slot_bytes for layout in model.layouts.values())
    logger.info(
        "%s: %s of weights in %s, within %s (%s)",
        config.model.name,
        format_size(weights),
        str(model.shell.dtype).removeprefix("torch."),
        format_size(plan.budget),
        plan.budget_reason,
    )
    logger.info(
        "%s: %d requests in groups of %d batches of %d; %d of %d blocks stay, up to %s streams in each sweep",
        config.pipeline.name,
        num_requests,
        plan.n_batches,
        plan.batch_size,
        len(plan.residents),
        len(model.layouts),
        format_size(plan.streamed_bytes),
    )
