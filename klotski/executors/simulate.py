"""The same sweep on virtual lanes: nothing is read and nothing computed, and everything takes its time."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from rich.console import Console

from klotski.core import LaneName, Products, Request, SweepReport
from klotski.executors.account import Account
from klotski.executors.garbage import uncollected
from klotski.executors.history import Setup
from klotski.executors.outline import read_outline
from klotski.executors.planning import describe, is_described
from klotski.executors.task import AtHand, Task, find_shape, has_shape_only, make_sweeper, miss_costs, prepare
from klotski.lanes import VirtualClock, VirtualComputeLane, VirtualLane
from klotski.pipeline import (
    Ahead,
    Below,
    Caches,
    CachesAtHand,
    CoresPace,
    NothingAhead,
    RoutingTable,
    create_predictor,
    run_group,
)
from klotski.planner import Costs, Rates, find_gpus, placement_order, show_plan
from klotski.schema import RunConfig, has_gpu
from klotski.simulation import (
    CoresDurations,
    DrawnRouters,
    Durations,
    HostCaches,
    IdleWorker,
    RecordedRouters,
    Routers,
    Supply,
    SyntheticBatch,
)
from klotski.telemetry import Recorder, RunLog, Totals
from klotski.units import user_path
from klotski.weights import Residency, SlotKind
from klotski.workload import RoughTokenizer, cut_batches

if TYPE_CHECKING:
    from klotski.executors.devices import Device  # which takes torch
    from klotski.model import OpenModel

__all__ = ["SimulatedExecutor"]

logger = logging.getLogger(__name__)


class SimulatedExecutor:
    """Predicts a run on any machine; see `executors.Executor`. `reason`: why it was not carried out."""

    mode = "predicted"

    def __init__(self, reason: str = "executor=simulate") -> None:
        self._reason = reason

    def run(self, config: RunConfig, log: RunLog, recorder: Recorder, totals: Totals) -> None:
        """Open the model's shape, read the workload, plan, and sweep in virtual time."""
        logger.warning("predicted, not run: %s", self._reason)
        totals.reason = self._reason
        with uncollected():
            task = make_task(config, log)
            totals.plan = task.plan.as_dict()
            log.plan(totals.plan)
            describe(config, task.outline, task.plan, len(task.requests))
            if config.dry_run:
                show_plan(task.plan, task.facts, Console())
                return
            logger.info("%s", task.plan.explanation)
            simulate(config, task, log, recorder, totals)


def make_task(config: RunConfig, log: RunLog) -> Task:
    """What is to be predicted. A model is opened only if nothing is known of it, or to measure the machine."""
    folder = find_shape(config)
    shape_only = has_shape_only(config, folder)

    @cache
    def opened() -> "OpenModel":
        from klotski.executors.opening import open_for

        return open_for(config, folder, shape_only=shape_only, cache_blocking=not on_gpu)

    @cache
    def device() -> "Device":
        from klotski.executors.devices import find_device

        return find_device(config.hw.gpu)

    def measure() -> Rates | None:
        from klotski.executors.machine import machine_rates
        from klotski.executors.threads import computing_threads

        with computing_threads(config.hw):
            return machine_rates(config.history, opened(), device())

    def setup() -> Setup:
        from klotski.executors.machine import setup_of
        from klotski.executors.threads import computing_threads

        with computing_threads(config.hw):
            return setup_of(device(), dtype)

    of_gpu = None if is_described(config) or not find_gpus() else device().memory()
    on_gpu = of_gpu is not None or has_gpu(config.hw)
    outline = read_outline(folder) if shape_only else None
    tokenizer: Any = None
    if outline is None or config.model.dtype.value not in ("auto", outline.dtype):
        from klotski.executors.facts import outline_of

        outline, tokenizer = outline_of(opened()), opened().tokenizer
    elif on_gpu:
        outline = replace(outline, facts=outline.facts.without_cache_blocking())
    dtype = outline.dtype
    if shape_only:  # what has no file is taken to be read as it is
        outline = replace(outline, facts=replace(outline.facts, stored_bytes=outline.facts.block_bytes))
    return prepare(config, log, folder, outline, tokenizer or RoughTokenizer(), AtHand(measure, setup, of_gpu))


def simulate(config: RunConfig, task: Task, log: RunLog, recorder: Recorder, totals: Totals) -> None:
    """Sweep in virtual time until all requests have ended."""
    plan, terms, facts, clock = task.plan, task.terms, task.facts, VirtualClock()
    # What lies between two operations is the lane's to wait for.
    costs = Costs(facts, terms.demand, terms.rates._replace(between=0.0), terms.wishes)
    under_way: dict[int, SyntheticBatch] = {}
    residents = set(plan.residents)
    lasting = [block for block in placement_order(facts, terms.wishes) if block not in residents]
    durations = Durations(costs, under_way, lambda: supply.is_reading, config.pipeline.products)
    compute = VirtualComputeLane(LaneName.COMPUTE, recorder, clock, durations, terms.rates.between, terms.rates.wake)
    on_host = plan.host_memory.get("weights", 0)
    places = plan.window_places or 1  # what stays on the GPU comes through it, too
    supply = Supply(facts, terms.rates, lasting, on_host, recorder, clock, lambda: compute.load, places)
    of_misses = miss_costs(task)
    pace = CoresPace(of_misses, recorder)
    cores = VirtualLane(LaneName.CORES, pace, clock, CoresDurations(terms.rates.below, of_misses))
    caches: Caches = CachesAtHand()
    if plan.kv_slots:
        caches = HostCaches(facts, terms.rates, plan.kv_slots, supply.wire, cores, recorder, clock, under_way)
    slots = {SlotKind.DENSE: plan.dense_slots, SlotKind.EXPERT: plan.expert_slots}
    residency = Residency(slots, plan.residents, supply.bring, plan.lent_slots, config.placement.residents)
    table = RoutingTable(facts.expert_counts)
    task.history.recall(table)
    predictor = create_predictor(config.pipeline.predictor, table)
    ahead: Ahead = supply.window if plan.window_places else NothingAhead()
    together = terms.rates.link is not None and config.pipeline.products is Products.group
    sweeper = make_sweeper(
        config,
        task,
        predictor,
        residency,
        compute,
        IdleWorker(),
        caches,
        ahead=ahead,
        together=together,
        below=Below(cores, supply.below, pace),
    )
    with Account(task.requests, facts, task.encoder, log, recorder, totals, is_measured=False) as account:
        totals.sampled |= rates_by_lane(task)
        supply.load(plan.residents)
        account.ready(plan.lasting_memory, sum(plan.host_memory.values()), with_caches=not plan.kv_slots)
        account.sweeping(sweeper.prefetch)

        def swept(report: SweepReport) -> None:
            account.sweep(report)
            for index in [index for index, batch in under_way.items() if batch.is_finished]:
                del under_way[index]

        batches = make_batches(config, task, account, under_way)
        run_group(batches, plan.n_batches, plan.prefill_tokens, sweeper, compute, clock, swept)
        caches.close()
        cores.close()
        supply.settle()
        log.experts(table.summary())


def make_batches(
    config: RunConfig, task: Task, account: Account, under_way: dict[int, SyntheticBatch]
) -> Iterator[SyntheticBatch]:
    """The batches, each made when its turn comes, and entered among those under way."""
    facts = task.facts
    routers = find_routers(config, task)

    def ended(request: Request) -> None:
        account.ended(request, request.max_tokens)

    for index, requests in enumerate(cut_batches(task.requests, task.plan.batch_size)):
        under_way[index] = SyntheticBatch(
            index,
            requests,
            facts.expert_counts,
            routers,
            task.plan.prefill_tokens,
            facts.kept_bytes,
            ended,
            spares=task.outline.spares,
            attends_below=task.plan.attends_below,
        )
        yield under_way[index]


def find_routers(config: RunConfig, task: Task) -> Routers:
    """What the config says that routing follows."""
    facts, setting = task.facts, config.executor.routing
    if setting not in ("auto", "uniform"):
        return RecordedRouters(user_path(setting) / "routing.jsonl", facts.expert_counts)
    table = RoutingTable(facts.expert_counts)
    is_known = setting == "auto" and task.history.recall(table)
    return DrawnRouters(facts.expert_counts, facts.top_k, table if is_known else None, config.workload.seed)


def rates_by_lane(task: Task) -> Mapping[str, float]:
    """What each lane is held to reach."""
    rates = task.plan.rates
    known = {LaneName.DISK: rates.disk, LaneName.COMPUTE: rates.compute, LaneName.LINK: rates.link}
    return {lane: rate for lane, rate in known.items() if rate}
