"""What a config grants and wishes, as a plan: the budget, the choices that are made already, and what is said of it."""

import logging
import socket
from collections.abc import Callable, Sequence

from klotski.assets import BUNDLED
from klotski.core import Attention, KvCache, Request
from klotski.errors import BudgetError
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
    process_budget,
    runtime_memory,
)
from klotski.planner.rates import NOMINAL_GPU
from klotski.schema import HwConfig, LoadFormat, RunConfig, is_overridden, names_a_machine, read_hardware
from klotski.schema.hardware import PLAUSIBLE
from klotski.units import format_flops, format_size, parse_count, parse_size
from klotski.workload import in_batch_order

__all__ = ["describe", "find_terms", "hardware_file", "is_described", "plan_what_fits"]

logger = logging.getLogger(__name__)

SETTINGS = {
    "link": "link_bandwidth",
    "back": "link_bandwidth_back",
    "disk": "disk_bandwidth",
    "start": "disk_latency",
    "compute": "compute_rate",
    "memory": "memory_bandwidth",
    "below": "host_memory_bandwidth",
    "cores": "host_compute_rate",
    "cores_product": "host_product_bandwidth",
    "product": "product_bandwidth",
    "turn": "batch_overhead",
    "step": "expert_overhead",
    "between": "operation_overhead",
    "wake": "wake_overhead",
}
"""By which key of the config each of the rates is set."""
OF_A_WAY = ("link_", "host_")
"""How the keys of a way to a GPU begin, and of what lies below one."""
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
    rates = choose_rates(config, known or (NOMINAL if own is None else NOMINAL_GPU), dtype)
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


def plan_what_fits(
    terms_of: Callable[[Sequence[Request]], Terms], requests: Sequence[Request]
) -> tuple[Terms, Plan, list[Request]]:
    """The plan for as many of the requests as the budget can hold, shortest first, and those that it cannot hold.

    `terms_of`: the terms on which requests are planned.

    Raises:
        BudgetError: not even the shortest fits.
    """
    try:
        terms = terms_of(requests)
        return terms, plan_run(terms), []
    except BudgetError:
        shortest_first = sorted(
            requests, key=lambda request: (len(request.prompt) + request.max_tokens, request.number)
        )
        if len(shortest_first) < 2 or not does_fit(terms_of(shortest_first[:1])):
            raise
    fit, too_many = 1, len(shortest_first)
    while too_many - fit > 1:
        middle = (fit + too_many) // 2
        fit, too_many = (middle, too_many) if does_fit(terms_of(shortest_first[:middle])) else (fit, middle)
    kept = {request.number for request in shortest_first[:fit]}
    terms = terms_of([request for request in requests if request.number in kept])
    return terms, plan_run(terms), shortest_first[fit:]


def does_fit(terms: Terms) -> bool:
    """Whether the budget holds any plan on these terms."""
    try:
        make_plan(terms)
    except BudgetError:
        return False
    return True


def grant(config: RunConfig, of_gpu: tuple[int, str] | None = None) -> Budget:
    """The budget, and why it is that. `of_gpu`: bytes that a GPU has free, and why so many."""
    hw = config.hw
    granted = parse_size("hw.device_memory", hw.device_memory)
    host = parse_size("hw.host_memory", hw.host_memory)
    runtime = parse_size("hw.runtime_memory", hw.runtime_memory, least=0)
    as_set = whence(hw, "device_memory")
    if of_gpu is not None:
        free, reason = of_gpu
        context = GPU_CONTEXT if runtime is None else runtime
        below = (host, whence(hw, "host_memory")) if host else free_memory()
        return Budget(granted or free + context, as_set if granted else reason, context, *below)
    if runtime is None:
        runtime = runtime_memory()
    if granted is not None:
        return Budget(granted, as_set, runtime, host or 0, whence(hw, "host_memory"))
    own = parse_size("model.auto_device_memory", config.model.auto_device_memory)
    if own is not None and config.model.path == BUNDLED:
        reason = f"{format_size(own)} beside the interpreter, so that model={config.model.name} has to stream"
        return Budget(own + runtime, reason, runtime)
    return Budget(*process_budget(), runtime)


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
        misses=pipeline.misses,
        kv_moves=None if config.placement.kv_cache is KvCache.auto else config.placement.kv_cache is KvCache.host,
        attends_below=(
            None if config.placement.attention is Attention.auto else config.placement.attention is Attention.host
        ),
    )


def choose_rates(config: RunConfig, otherwise: Rates, dtype: str = "bfloat16") -> Rates:
    """The rates to plan by, each with its reason: those that are set, and otherwise these."""
    hw, rates = config.hw, otherwise
    keys = SETTINGS
    if dtype == "float32" and hw.compute_rate_float32 != "auto":
        keys = {**SETTINGS, "compute": "compute_rate_float32"}
    for name, key in keys.items():
        if (value := read_hardware(hw, key)) is not None:
            rates = rates.because(whence(hw, key), **{name: value})
    if (dense := read_hardware(hw, "dense_rate")) is not None:  # a share, which float32 has as well
        share = dense / (read_hardware(hw, "compute_rate") or otherwise.compute)
        rates = rates.because(whence(hw, "dense_rate"), dense_share=share)
    if hw.product_bandwidth == "auto" and hw.memory_bandwidth != "auto":
        rates = rates.because("as memory's", product=rates.memory)
    if hw.host_product_bandwidth == "auto" and hw.host_memory_bandwidth != "auto":
        rates = rates.because("as for keys and values", cores_product=rates.below)
    if hw.link_bandwidth_back == "auto" and rates.link is not None and hw.link_bandwidth != "auto":
        rates = rates.because("as the way in", back=rates.link)
    reasons = {name: rates.why(name) for name in (*SETTINGS, "dense_share")}
    return rates._replace(reason=rates.in_short(), reasons=reasons)


def whence(hw: HwConfig, key: str) -> str:
    """Where a value of the config is from: the option of a certain machine, or whoever set it."""
    return f"of hw={hw.name}" if names_a_machine(hw) and not is_overridden(f"hw.{key}") else "as set"


def hardware_file(rates: Rates, budget: Budget, gpu: str) -> str:
    """What a run measured, as an option of the group `hw` that another can plan and predict by.

    `budget`: what the run was granted. `gpu`: its name, or `none`.
    """
    values = {"device_memory": f"{budget.nbytes}B", "runtime_memory": f"{budget.runtime}B"}
    if rates.link is not None:
        values["host_memory"] = f"{budget.host}B"
    for name, key in SETTINGS.items():
        if (value := getattr(rates, name)) is not None and (rates.link is not None or not key.startswith(OF_A_WAY)):
            values[key] = f"{write_value(key, value)}  # {rates.why(name)}"
    flops = format_flops(rates.compute)
    values["compute_rate_float32"] = f"{flops}  # as in the type that was run in"
    values["dense_rate"] = f"{format_flops(rates.dense_share * rates.compute)}  # {rates.why('dense_share')}"
    head = [
        "# What a run reached on its machine. To plan and to predict by it, anywhere, with this file in FOLDER/hw:",
        "#   klotski --config-dir FOLDER hw=measured executor=simulate",
        "defaults: [schema/hw@_here_, _self_]",
        "name: measured",
        f"host: {socket.gethostname()}  # where it runs; anywhere else it is predicted",
        f"gpu: {gpu}",
    ]
    return "\n".join([*head, *(f"{key}: {value}" for key, value in values.items())]) + "\n"


def write_value(key: str, value: float) -> str:
    """A rate or a time as the config reads it, to three digits or, of a time, to a tenth of a microsecond."""
    match PLAUSIBLE[key].unit:
        case "s":
            return f"{max(0.1, 1e6 * value):.1f}us"
        case "FLOP":
            return format_flops(value)
    return f"{format_size(value)}/s"


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
    if config.placement.kv_cache is KvCache.host and plan.rates.link is not None and not plan.kv_slots:
        logger.warning("placement.kv_cache=host is ignored: sliding windows and states of a model stay on the device")
    if config.placement.attention is Attention.host and not plan.attends_below:
        where = (
            "this model's attention cannot leave the device"
            if plan.kv_slots
            else "keys and values do not lie below one"
        )
        logger.warning("placement.attention=host comes to nothing: %s", where)
    if config.model.note:
        logger.warning("%s: %s", config.model.name, config.model.note)
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
