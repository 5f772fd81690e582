"""The real thing: transformers' code on torch, blocks streamed from disk by a thread."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

import torch

from klotski.assets import BUNDLED, TINY
from klotski.core import LaneName, Request, SweepReport
from klotski.executors.account import Account
from klotski.executors.facts import gather_facts, workspace_shape
from klotski.executors.planning import describe, plan_run
from klotski.executors.rates import Rates
from klotski.executors.worker import TorchWorker
from klotski.lanes import InlineLane, Lane, ThreadLane
from klotski.model import Decoding, GenerationBatch, OpenModel, Workspace, open_model
from klotski.pipeline import Policy, Popularity, Sweeper, run_group
from klotski.planner import Plan, process_memory
from klotski.schema import DType, LoadFormat, RunConfig, SyntheticWorkload
from klotski.telemetry import Recorder, RunLog, Totals
from klotski.units import parse_count
from klotski.weights import (
    DEPTH,
    BlockStore,
    DummyReader,
    Reader,
    SlotKind,
    Source,
    allocate,
    keep_small_memory,
    resolve,
    return_free_memory,
    slot_sizes,
)
from klotski.workload import Encoder, cut_batches, load_requests

__all__ = ["TorchExecutor"]

logger = logging.getLogger(__name__)

NEARLY_ALL = 0.95  # of the budget; a sweep without prompts takes less of the heap than what is left
DTYPES = {DType.auto: None, DType.float32: torch.float32, DType.bfloat16: torch.bfloat16}


class TorchExecutor:
    """Runs a model on this machine; see `executors.Executor`."""

    mode = "measured"

    def run(self, config: RunConfig, log: RunLog, recorder: Recorder, totals: Totals) -> None:
        """Open the model, read the workload, plan, and sweep."""
        threads = parse_count("hw.threads", config.hw.threads)
        if threads is not None:
            torch.set_num_threads(threads)
        keep_small_memory()
        if config.hw.host_memory != "auto":
            logger.warning("hw.host_memory is not used: without a GPU the device tier is CPU memory")
        is_dummy = config.model.load_format is LoadFormat.dummy
        folder = TINY if config.model.path == BUNDLED else resolve(config.model.path, with_weights=not is_dummy)
        model = open_model(folder, DTYPES[config.model.dtype], is_dummy=is_dummy)
        encoder = Encoder(model.tokenizer, model.config.get_text_config().vocab_size, model.context)
        requests = load_requests(config.workload, encoder, log.error)
        if log.num_errors:
            logger.warning("%d requests cannot be run; errors.jsonl says why", log.num_errors)
        facts = gather_facts(model)
        plan = plan_run(config, facts, requests)
        totals.plan = plan.as_dict()
        log.plan(totals.plan)
        describe(config, model, plan, len(requests))
        with ExitStack() as stack, torch.inference_mode():
            account = stack.enter_context(Account(requests, facts, encoder, log, recorder, totals))
            compute = InlineLane(LaneName.COMPUTE, recorder, log.clock)
            source: Source = DummyReader() if is_dummy else Reader(model.staging)
            stack.callback(source.close)  # after the lane that reads with it
            disk = ThreadLane(LaneName.DISK, recorder, log.clock, DEPTH)
            stack.callback(disk.close)
            workspace = make_workspace(model, plan)
            store = load_weights(model, plan, source, disk, workspace)
            rates = Rates(store, workspace)
            account.measured(rates.measure())
            account.ready(sum(plan.memory[use] for use in ("fixed", "staging", "workspace")) + store.nbytes)
            sweeper = make_sweeper(config, model, plan, store, workspace, compute)
            account.sweeping(sweeper.prefetch)
            batches = make_batches(config, model, plan, cut_batches(requests, plan.batch_size), account)

            def swept(report: SweepReport) -> None:
                account.sweep(report)
                if report.prefill_tokens or process_memory() > NEARLY_ALL * plan.budget:
                    return_free_memory()

            run_group(batches, plan.n_batches, plan.prefill_tokens, sweeper, compute, log.clock, swept)
            account.measured(rates.measure())


def load_weights(model: OpenModel, plan: Plan, source: Source, disk: Lane, workspace: Workspace) -> BlockStore:
    """Allocate all that was planned for weights, and read what stays for the whole run."""
    slots = {SlotKind.DENSE: plan.dense_slots, SlotKind.EXPERT: plan.expert_slots}
    with torch.inference_mode(mode=False):  # slots are written by another thread, outside of it
        lent = plan.lent_slots * slot_sizes(model.layouts)[SlotKind.EXPERT]
        spare = workspace.spare(plan.sequences)[:lent]
        store = BlockStore(model.layouts, slots, plan.residents, source, disk, spare)
        fixed = allocate(model.fixed.slot_bytes)
    source.read(model.fixed, fixed)
    model.shell.bind(model.fixed.views_of(fixed))
    store.load_residents()
    return store


def make_workspace(model: OpenModel, plan: Plan) -> Workspace:
    """Memory for the expert phase of the largest sweep."""
    with torch.inference_mode(mode=False):
        return Workspace(workspace_shape(model), plan.tokens_in_flight, model.shell.dtype)


def make_sweeper(
    config: RunConfig, model: OpenModel, plan: Plan, store: BlockStore, workspace: Workspace, compute: Lane
) -> Sweeper:
    """The sweep over this model with the config's strategy."""
    strategy = config.pipeline
    policy = Policy(strategy.prefetch, plan.hot_experts, strategy.on_demand, strategy.order)
    experts = model.shell.expert_counts
    worker = TorchWorker(model.shell, store, workspace)
    return Sweeper(experts, policy, Popularity(experts), store.residency, compute, worker, plan.sequences)


def make_batches(
    config: RunConfig, model: OpenModel, plan: Plan, batches: Iterable[list[Request]], account: Account
) -> Iterator[GenerationBatch]:
    """The coroutines, each made when its turn comes."""
    ends_early = not isinstance(config.workload, SyntheticWorkload)
    decoding = Decoding(
        model.stop_ids if ends_early else (), model.pad_id, config.workload.temperature, config.workload.seed
    )
    for index, requests in enumerate(batches):
        yield GenerationBatch(index, requests, model.shell.model, decoding, account.result, plan.prefill_tokens)
