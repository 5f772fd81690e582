"""The real thing: transformers' code on torch, while lanes bring blocks, and keys and values, to where it computes."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from weakref import ref

import torch
from rich.console import Console

from klotski.core import Block, LaneName, Residents, SweepReport
from klotski.executors.account import Account
from klotski.executors.caches import CachePlaces, MovingCaches, Place
from klotski.executors.devices import Device, find_device
from klotski.executors.facts import outline_of, workspace_shape
from klotski.executors.garbage import collect_earlier_runs
from klotski.executors.learned import keep_what_was_learned
from klotski.executors.machine import machine_rates, setup_of
from klotski.executors.opening import open_for
from klotski.executors.planning import describe
from klotski.executors.rates import RateSamples
from klotski.executors.recording import RecordingPredictor
from klotski.executors.task import (
    AtHand,
    Task,
    computes_below,
    find_checkpoint,
    find_shape,
    foresees,
    has_shape_only,
    is_dummy,
    make_sweeper,
    miss_costs,
    prepare,
)
from klotski.executors.threads import computing_threads
from klotski.executors.worker import TorchWorker
from klotski.lanes import Lane, ThreadLane
from klotski.model import (
    Foresight,
    GenerationBatch,
    MovingLayer,
    OpenModel,
    Workspace,
    keep_routers,
    make_cache,
)
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
from klotski.planner import (
    Calibration,
    Plan,
    find_gpus,
    first_blocks,
    placement_order,
    process_memory,
    reset_peak_memory,
    show_plan,
)
from klotski.planner.reservations import release
from klotski.schema import RunConfig, SyntheticWorkload, WorkloadConfig
from klotski.shutdown import CleanUp
from klotski.telemetry import Recorder, RunLog, Totals
from klotski.units import format_size
from klotski.weights import SlotKind
from klotski.weights.carriers import Carrier, FromDisk, Source, ThroughHost
from klotski.weights.dummy import DummyReader
from klotski.weights.memory import allocate, keep_small_memory, return_free_memory
from klotski.weights.reader import Reader
from klotski.weights.store import DEPTH, BlockStore, slot_sizes
from klotski.workload import cut_batches

__all__ = ["TorchExecutor"]

logger = logging.getLogger(__name__)

NEARLY_ALL = 0.95  # of the budget; a sweep without prompts takes less of the heap than what is left


class TorchExecutor:
    """Runs a model on this machine; see `executors.Executor`. `device`: where; None: on the GPU, if there is one."""

    mode = "measured"

    def __init__(self, device: Device | None = None) -> None:
        self._device = device

    def run(self, config: RunConfig, log: RunLog, recorder: Recorder, totals: Totals) -> None:
        """Open the model, read the workload, plan, and sweep."""
        collect_earlier_runs()
        reset_peak_memory()
        device = self._device or find_device(config.hw.gpu)
        with computing_threads(config.hw):
            self._run(config, device, log, recorder, totals)

    def _run(self, config: RunConfig, device: Device, log: RunLog, recorder: Recorder, totals: Totals) -> None:
        configure(config, device)
        folder = find_shape(config) if is_dummy(config) or config.dry_run else find_checkpoint(config)
        shape_only = has_shape_only(config, folder)
        model = open_for(config, folder, shape_only=shape_only, cache_blocking=device.cache_blocking)
        warn_of_sampling(model, config.workload)
        outline = outline_of(model)
        machine = AtHand(
            measure=partial(machine_rates, config.history, model, device),
            setup=partial(setup_of, device, outline.dtype),
            of_gpu=device.memory(),
            takes_memory=not config.dry_run,
        )
        try:
            task = prepare(config, log, folder, outline, model.tokenizer, machine)
            totals.plan = task.plan.as_dict()
            log.plan(totals.plan)
            describe(config, task.outline, task.plan, len(task.requests))
            if config.dry_run:
                show_plan(task.plan, task.facts, Console())
            else:
                carry_out(config, model, task, device, log, recorder, totals)
        finally:
            release()


def warn_of_sampling(model: OpenModel, workload: WorkloadConfig) -> None:
    """Say that a checkpoint asks to be sampled, where a run is greedy."""
    wanted = model.decoding.temperature
    if wanted and not workload.temperature and not isinstance(workload, SyntheticWorkload):
        logger.warning(
            "generation_config.json asks for sampling, and this run is greedy; workload.temperature=%s samples", wanted
        )


def configure(config: RunConfig, device: Device) -> None:
    """Set up the heap, and warn of settings that are ignored here."""
    keep_small_memory()
    if not device.has_host_tier:
        for name, memory in find_gpus() if config.hw.gpu != "none" else []:
            logger.warning("the %s with %s is not used: this torch cannot use it", name, format_size(memory))
        if config.hw.host_memory != "auto":
            logger.warning("hw.host_memory is not used: without a GPU the device tier is CPU memory")


def carry_out(
    config: RunConfig,
    model: OpenModel,
    task: Task,
    device: Device,
    log: RunLog,
    recorder: Recorder,
    totals: Totals,
) -> None:
    """Take memory as planned, and sweep until all requests have ended."""
    plan = task.plan
    device.limit(plan.budget, plan.memory["runtime"])
    with CleanUp() as stack, torch.inference_mode():
        account = stack.enter_context(Account(task.requests, task.facts, task.encoder, log, recorder, totals))
        calibration = Calibration(recorder)
        make_lane = device.lanes(log.clock)
        lanes: list[Lane] = []

        def lane(name: LaneName) -> Lane:
            made = make_lane(name, calibration if name is LaneName.COMPUTE else recorder)
            stack.callback(made.close)
            lanes.append(made)
            return made

        source: Source = DummyReader() if is_dummy(config) else Reader(model.staging)
        stack.callback(source.close)  # after the lane that reads with it
        disk = ThreadLane(LaneName.DISK, recorder, log.clock, DEPTH)
        stack.callback(disk.close)
        lanes.append(disk)
        compute = lane(LaneName.COMPUTE)
        workspace = make_workspace(model, plan, device)
        carrier, host, ahead = make_carrier(model, task, device, source, disk, lane)
        below = None
        if plan.attends_below or computes_below(config, task):
            pace = CoresPace(miss_costs(task), calibration)
            below = Below(ThreadLane(LaneName.CORES, pace, log.clock), carrier.below, pace)
            stack.callback(below.lane.close)
            lanes.append(below.lane)
        caches, places = make_caches(plan, device, lane, below.lane if below and plan.attends_below else None)
        host += places.nbytes
        store = load_weights(model, plan, source, carrier, device, workspace, config.placement.residents)
        table = RoutingTable(model.shell.expert_counts)
        task.history.recall(table)
        rates = RateSamples(store, workspace, device)
        stack.callback(lambda: keep_what_was_learned(table, task, calibration, log, totals, rates, device))
        account.measured(rates.measure())
        account.ready(taken(plan, store), host, with_caches=not plan.kv_slots, taken=device.taken)
        predictor = create_predictor(config.pipeline.predictor, table)
        if config.record_routing:
            predictor = RecordingPredictor(predictor, log.routing)
        worker = TorchWorker(model.shell, store, workspace, carrier.views_below)
        together = device.multiplies_together(model.shell.dtype)
        sweeper = make_sweeper(
            config,
            task,
            predictor,
            store.residency,
            compute,
            worker,
            caches,
            ahead=ahead,
            together=together,
            below=below,
        )
        account.sweeping(sweeper.prefetch)
        stack.enter_context(recorder.telling(lambda: account.look(log.clock(), lanes, sweeper.waiting)))
        foresight = keep_routers(model.shell, lambda layer: store.glance(Block(layer))) if foresees(config) else None
        batches = make_batches(config, model, task, device, account, foresight, places)

        def swept(report: SweepReport) -> None:
            account.sweep(report)
            if device.has_host_tier:
                return
            if report.prefill_tokens or process_memory() > NEARLY_ALL * plan.budget:
                return_free_memory()

        run_group(batches, plan.n_batches, plan.prefill_tokens, sweeper, compute, log.clock, swept)
        caches.close()
        device.wait()
        account.measured(rates.measure())


def make_carrier(
    model: OpenModel, task: Task, device: Device, source: Source, disk: Lane, lane: Callable[[LaneName], Lane]
) -> tuple[Carrier, int, Ahead]:
    """The way of blocks to the device, the bytes of CPU memory below it that were taken for them, what reads ahead."""
    plan = task.plan
    if not device.has_host_tier:
        return FromDisk(model.layouts, source, disk), 0, NothingAhead()
    staying = set(plan.residents)
    lasting = [block for block in placement_order(task.facts, task.terms.wishes) if block not in staying]
    on_host = first_blocks(task.facts, lasting, plan.host_memory["weights"])
    with torch.inference_mode(mode=False):
        carrier = ThroughHost(
            model.layouts,
            on_host,
            plan.window_places or 1,  # what stays on the device comes through it, too
            source,
            disk,
            lane(LaneName.LINK),
            device.allocate_host,
            device.copy,
        )
    carrier.load()
    return carrier, carrier.nbytes, carrier.window if plan.window_places else NothingAhead()


def make_caches(
    plan: Plan, device: Device, lane: Callable[[LaneName], Lane], cores: Lane | None
) -> tuple[Caches, CachePlaces]:
    """Where keys and values are, and where attention looks at them, as planned; the places for those in CPU memory."""
    if not plan.kv_slots:
        return CachesAtHand(), CachePlaces(0, 0, device.allocate_host)
    with torch.inference_mode(mode=False):
        nbytes = plan.memory["kv_cache"] // plan.kv_slots
        caches = MovingCaches(plan.kv_slots, nbytes, device, lane(LaneName.KV_IN), lane(LaneName.KV_OUT), cores)
        return caches, CachePlaces(plan.kv_places, plan.host_memory["kv_cache"] // plan.kv_places, device.allocate_host)


def load_weights(
    model: OpenModel,
    plan: Plan,
    source: Source,
    carrier: Carrier,
    device: Device,
    workspace: Workspace,
    cache: Residents,
) -> BlockStore:
    """Allocate all that was planned for weights, and bring what stays for the whole run."""
    slots = {SlotKind.DENSE: plan.dense_slots, SlotKind.EXPERT: plan.expert_slots}
    with torch.inference_mode(mode=False):  # slots are written by another thread, outside of it
        lent = plan.lent_slots * slot_sizes(model.layouts)[SlotKind.EXPERT]
        spare = workspace.spare(plan.sequences)[:lent]
        store = BlockStore(model.layouts, slots, plan.residents, carrier, spare, cache, device.allocate)
        fixed = read = device.allocate(model.fixed.slot_bytes)
        if device.has_host_tier:
            read = allocate(model.fixed.slot_bytes)
    source.read(model.fixed, read)
    if read is not fixed:
        device.copy(fixed, read)
        device.wait()  # before what was read is given back
    model.shell.bind(model.fixed.views_of(fixed))
    model.shell.move_unsaved(device.place)
    store.load_residents()
    return store


def taken(plan: Plan, store: BlockStore) -> int:
    """Bytes of the device's memory that last."""
    slots = plan.memory["kv_cache"] if plan.kv_slots else 0
    return sum(plan.memory[use] for use in ("fixed", "staging", "workspace")) + store.nbytes + slots


def make_workspace(model: OpenModel, plan: Plan, device: Device) -> Workspace:
    """Memory for the expert phase of the largest sweep."""
    with torch.inference_mode(mode=False):
        return Workspace(workspace_shape(model), plan.tokens_in_flight, model.shell.dtype, device.allocate)


def make_batches(
    config: RunConfig,
    model: OpenModel,
    task: Task,
    device: Device,
    account: Account,
    foresight: Foresight | None,
    places: CachePlaces,
) -> Iterator[GenerationBatch]:
    """The coroutines, each made when its turn comes."""
    plan = task.plan
    ends_early = not isinstance(config.workload, SyntheticWorkload)
    decoding = model.decoding if ends_early else model.decoding._replace(stop_ids=(), settings={})
    for index, requests in enumerate(cut_batches(task.requests, plan.batch_size)):
        place = Place(places)
        reserved = partial(MovingLayer, allocate=place.allocate) if plan.kv_slots else None
        batch = GenerationBatch(
            index,
            requests,
            model.shell.model,
            decoding,
            account.result,
            plan.prefill_tokens,
            foresight,
            device.place,
            partial(make_cache, model.config, reserved=reserved),
        )
        place.owner = ref(batch)
        yield batch
