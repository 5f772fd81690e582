"""What a config grants and wishes, as a plan: the budget, the choices that are made already, and what is said of it."""

import logging
from collections.abc import Sequence

from klotski.assets import BUNDLED
from klotski.core import Attention, KvCache, Request
from klotski.executors.outline import Outline
from klotski.planner import (
    NOMINAL,
    Budget,
    Demand,
    ModelFacts,
    Plan,
    Rates,
    Terms,
    Wishes,
    explain,
    free_memory,
    make_plan,
    runtime_memory,
)
from klotski.schema import LoadFormat, RunConfig
from klotski.units import format_flops, format_size, parse_count, parse_rate, parse_seconds, parse_size
from klotski.workload import in_batch_order

__all__ = ["describe", "find_terms", "hardware_file", "is_described", "plan_run"]

logger = logging.getLogger(__name__)

GPU_CONTEXT = 600 << 20  # bytes of a GPU that its libraries take for themselves; assumed, not measured


def find_terms(
    config: RunConfig,
    dtype: str,
    facts: ModelFacts,
    requests: Sequence[Request],
    known: Rates | None,
    own: tuple[int, str] | None = None,
) -> Terms:
    """On which terms these requests are planned.

    `dtype`: of the arithmetic. `known`: rates that were measured here; `own`: bytes that a GPU has free, and why so
    many.
    """
    lengths = [(len(request.prompt), request.max_tokens) for request in in_batch_order(requests)]
    rates = choose_rates(config, known or NOMINAL, dtype)
    wished = wishes(config)
    if rates.link is not None:  # weights that are made up are so in CPU memory, and stream from there
        wished = wished._replace(all_stay=False)
    return Terms(facts, Demand(lengths), grant(config, own), wished, rates)


def is_described(config: RunConfig) -> bool:
    """Whether the config says what the machine reaches, so that nobody has to measure it."""
    hw = config.hw
    return hw.compute_rate != "auto" and hw.disk_bandwidth != "auto"


def plan_run(terms: Terms) -> Plan:
    """The plan on these terms, with its reasons.

    Raises:
        BudgetError: none fits into the budget.
    """
    return explain(make_plan(terms), terms)


def grant(config: RunConfig, of_gpu: tuple[int, str] | None = None) -> Budget:
    """The budget, and why it is that. `of_gpu`: bytes that a GPU has free, and why so many."""
    if of_gpu is not None:
        free, reason = of_gpu
        host = parse_size("hw.host_memory", config.hw.host_memory) or free_memory()[0]
        set_bytes = parse_size("hw.device_memory", config.hw.device_memory)
        runtime = parse_size("hw.runtime_memory", config.hw.runtime_memory, least=0)
        context = GPU_CONTEXT if runtime is None else runtime
        return Budget(set_bytes or free + context, "as set" if set_bytes else reason, context, host)
    granted = parse_size("hw.device_memory", config.hw.device_memory)
    own = parse_size("model.auto_device_memory", config.model.auto_device_memory)
    runtime = parse_size("hw.runtime_memory", config.hw.runtime_memory, least=0)
    if runtime is None:
        runtime = runtime_memory()
    if granted is not None:
        host = parse_size("hw.host_memory", config.hw.host_memory) or 0
        reason = "as set" if config.hw.link_bandwidth == "auto" else f"of hw={config.hw.name}"
        return Budget(granted, reason, runtime, host)
    if own is not None and config.model.path == BUNDLED:
        reason = f"{format_size(own)} beside the interpreter, so that model={config.model.name} has to stream"
        return Budget(own + runtime, reason, runtime)
    return Budget(*free_memory(), runtime)


def wishes(config: RunConfig) -> Wishes:
    """What the config has decided already."""
    pipeline = config.pipeline
    return Wishes(
        n_batches=parse_count("pipeline.n_batches", pipeline.n_batches),
        batch_size=parse_count("pipeline.batch_size", pipeline.batch_size),
        hot_experts=parse_count("pipeline.hot_experts", pipeline.hot_experts),
        prefill_tokens=parse_count("pipeline.prefill_tokens", pipeline.prefill_tokens),
        residents=config.placement.residents,
        all_stay=config.model.load_format is LoadFormat.dummy,
        expert_slots=parse_count("pipeline.expert_slots", pipeline.expert_slots),
        prefetch=pipeline.prefetch,
        on_demand=pipeline.on_demand,
        products=pipeline.products,
        kv_moves=None if config.placement.kv_cache is KvCache.auto else config.placement.kv_cache is KvCache.host,
        attends_below=(
            None if config.placement.attention is Attention.auto else config.placement.attention is Attention.host
        ),
    )


def choose_rates(config: RunConfig, otherwise: Rates, dtype: str = "bfloat16") -> Rates:
    """The rates to plan by: those that are set, and otherwise these."""
    hw = config.hw
    disk = parse_rate("hw.disk_bandwidth", hw.disk_bandwidth, "B")
    compute = parse_rate("hw.compute_rate", hw.compute_rate, "FLOP")
    if dtype == "float32":
        compute = parse_rate("hw.compute_rate_float32", hw.compute_rate_float32, "FLOP") or compute
    link = parse_rate("hw.link_bandwidth", hw.link_bandwidth, "B")
    back = parse_rate("hw.link_bandwidth_back", hw.link_bandwidth_back, "B")
    memory = parse_rate("hw.memory_bandwidth", hw.memory_bandwidth, "B")
    below = parse_rate("hw.host_memory_bandwidth", hw.host_memory_bandwidth, "B")
    product = parse_rate("hw.product_bandwidth", hw.product_bandwidth, "B")
    turn = parse_seconds("hw.batch_overhead", hw.batch_overhead)
    step = parse_seconds("hw.expert_overhead", hw.expert_overhead)
    between = parse_seconds("hw.operation_overhead", hw.operation_overhead)
    wake = parse_seconds("hw.wake_overhead", hw.wake_overhead)
    start = parse_seconds("hw.disk_latency", hw.disk_latency)
    dense = parse_rate("hw.dense_rate", hw.dense_rate, "FLOP")
    match disk, compute:
        case _ if link is not None:
            reason = f"of hw={hw.name}"
        case None, None:
            reason = otherwise.reason
        case _, None:
            reason = f"the disk's as set, arithmetic's {otherwise.reason}"
        case None, _:
            reason = f"arithmetic's as set, the disk's {otherwise.reason}"
        case _:
            reason = "as set"
    multiplied = compute or otherwise.compute
    return Rates(
        disk=disk or otherwise.disk,
        compute=multiplied,
        reason=reason,
        dense_share=dense / multiplied if dense else otherwise.dense_share,
        memory=memory or otherwise.memory,
        product=product or memory or otherwise.product,
        turn=turn or otherwise.turn,
        step=step or otherwise.step,
        between=between or otherwise.between,
        wake=wake or otherwise.wake,
        start=start or otherwise.start,
        link=link or otherwise.link,
        back=back or link or otherwise.back,
        below=below or otherwise.below,
    )


def hardware_file(rates: Rates) -> str:
    """What a run measured, as an option of the group `hw` that another can plan and predict by."""
    settings = {
        "disk_bandwidth": f"{format_size(rates.disk)}/s",
        "disk_latency": f"{1e3 * rates.start:.3g}ms",
        "memory_bandwidth": f"{format_size(rates.memory)}/s",
        "product_bandwidth": f"{format_size(rates.product)}/s",
        "compute_rate": format_flops(rates.compute),
        "dense_rate": format_flops(rates.dense_share * rates.compute),
        "batch_overhead": f"{1e6 * rates.turn:.0f}us",
        "expert_overhead": f"{1e6 * rates.step:.0f}us",
        "wake_overhead": f"{max(1.0, 1e6 * rates.wake):.0f}us",
        "operation_overhead": f"{1e6 * rates.between:.0f}us",
    }
    head = [
        "# What a run reached on its machine. To plan and to predict by it, anywhere, with this file in FOLDER/hw:",
        "#   klotski --config-dir FOLDER hw=measured executor=simulate",
        "defaults: [schema/hw@_here_, _self_]",
        "name: measured",
    ]
    return "\n".join([*head, *(f"{key}: {value}" for key, value in settings.items())]) + "\n"


def describe(config: RunConfig, outline: Outline, plan: Plan, num_requests: int) -> None:
    """Say in two lines what is about to happen."""
    logger.info(
        "%s: %s of weights in %s, within %s (%s)",
        config.model.name,
        format_size(outline.facts.fixed_bytes + outline.facts.weight_bytes),
        outline.dtype,
        format_size(plan.budget),
        plan.budget_reason,
    )
    if config.placement.attention is Attention.host and not plan.attends_below:
        where = (
            "this model's attention cannot leave the device"
            if plan.kv_slots
            else "keys and values do not lie below one"
        )
        logger.warning("placement.attention=host comes to nothing: %s", where)
    group = f"groups of {plan.n_batches} batches of {plan.batch_size}"
    logger.info(
        "%s: %d requests in %s; %d of %d blocks stay, up to %s streams in each sweep",
        config.pipeline.name,
        num_requests,
        group if plan.n_batches > 1 else f"batches of {plan.batch_size}, one at a time",
        len(plan.residents),
        len(outline.facts.block_bytes),
        format_size(plan.streamed_bytes),
    )
