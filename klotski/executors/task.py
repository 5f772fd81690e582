"""What is to be run: the model outlined, the requests read, the plan made. No weight is read."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from klotski.assets import BUNDLED, SHAPES, TINY
from klotski.core import Misses, Prediction, Request
from klotski.executors.history import History, Setup
from klotski.executors.outline import Outline
from klotski.executors.planning import find_terms, is_described, plan_what_fits
from klotski.lanes import Lane
from klotski.pipeline import Ahead, Below, Caches, MissCosts, Policy, Predictor, Sweeper, Worker
from klotski.planner import Costs, ModelFacts, Plan, Rates, Terms, process_memory
from klotski.planner.costs import Work
from klotski.planner.reservations import one_at_a_time, reserve
from klotski.schema import LoadFormat, RunConfig, has_gpu, names_a_machine
from klotski.telemetry import RunLog
from klotski.units import format_size, user_path
from klotski.weights import Residency, find_folder, find_local, has_weights, is_whole, resolve
from klotski.workload import Encoder, Limits, load_requests

__all__ = [
    "AtHand",
    "Task",
    "computes_below",
    "find_checkpoint",
    "find_shape",
    "foresees",
    "has_shape_only",
    "is_dummy",
    "make_sweeper",
    "miss_costs",
    "prepare",
]

logger = logging.getLogger(__name__)


class AtHand(NamedTuple):
    """What a plan asks of the machine at hand, once it has to.

    `measure`: what it reaches; None: it is not worth it. `setup`: what it computes with. `of_gpu`: see
    `planning.grant`. `takes_memory`: whether this process carries out the plan, so that other runs leave it the memory.
    """

    measure: Callable[[], Rates | None]
    setup: Callable[[], Setup]
    of_gpu: tuple[int, str] | None = None
    takes_memory: bool = False


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
    machine: AtHand,
) -> Task:
    """Read the workload, and plan the run of the model in `folder`. `tokenizer`: None where it has none."""
    history = History(config.history, config.model.name, folder, machine.setup)
    encoder = Encoder(tokenizer, Limits(outline.vocab_size, outline.context, outline.recomputed_at))
    requests = load_requests(config.workload, encoder, log.error)
    above = outline.alone_above
    is_alone = above is not None and longest(requests) > above
    # Rotary embeddings of a prompt's first piece would not be those of the whole.
    reads_whole = outline.facts.reads_whole_prompts or (is_alone and above != 0)
    facts = replace(outline.facts, reads_whole_prompts=reads_whole)
    if foresees(config):
        facts = replace(facts, fixed_bytes=facts.fixed_bytes + outline.router_bytes)
    facts = replace(facts, shares=history.shares(facts.expert_counts, facts.top_k))
    known = known_rates(config, history, machine)

    def terms_of(some: Sequence[Request]) -> Terms:
        terms = find_terms(config, outline.dtype, facts, some, known, machine.of_gpu)
        return terms._replace(wishes=terms.wishes._replace(batch_size=1)) if is_alone else terms

    if is_alone:
        because = f"rotary embeddings beyond {above} tokens do" if above else "sparse attention does"
        logger.warning("batches have one sequence each, because this model's %s not allow padding", because)
    with one_at_a_time() if machine.takes_memory else nullcontext():
        terms, plan, too_long = plan_what_fits(terms_of, requests)
        if machine.takes_memory:
            reserve(host_bytes(plan))
    for request in too_long:
        log.error({"line": request.number, "id": request.id, "error": too_long_for(request, plan, too_long)})
    if log.num_errors:
        logger.warning("%d requests cannot be run; errors.jsonl says why", log.num_errors)
    left_out = {request.number for request in too_long}
    return Task(outline, [each for each in requests if each.number not in left_out], encoder, history, terms, plan)


def known_rates(config: RunConfig, history: History, machine: AtHand) -> Rates | None:
    """What is remembered or measured of the machine at hand; None: nothing, or the config names another machine."""
    if names_a_machine(config.hw):
        return None
    known, on_gpu = history.rates, machine.of_gpu is not None or has_gpu(config.hw)
    if (known is None or on_gpu) and not is_described(config):  # with a GPU, a run does not measure all of it
        measured = machine.measure()
        known = known if measured is None else history.over(measured) or measured
    return known


def host_bytes(plan: Plan) -> int:
    """Bytes of CPU memory that this process is going to have with a plan, the interpreter's and torch's among them."""
    if plan.rates.link is None:
        return sum(plan.memory.values())
    return process_memory() + sum(plan.host_memory.values())


def longest(requests: Sequence[Request]) -> int:
    """Tokens of a sequence with the longest prompt and the longest output: padded, a batch may get there."""
    return max(len(request.prompt) for request in requests) + max(request.max_tokens for request in requests)


def too_long_for(request: Request, plan: Plan, too_long: Sequence[Request]) -> str:
    """Why a request does not run though others do."""
    room = min(len(each.prompt) + each.max_tokens for each in too_long) - 1
    return (
        f"the prompt and max_tokens come to {len(request.prompt) + request.max_tokens} tokens, and "
        f"{format_size(plan.budget)} ({plan.budget_reason}) hold at most {room} of a sequence; "
        "raise hw.device_memory or lower max_tokens"
    )


def find_checkpoint(config: RunConfig, *, with_weights: bool = True) -> Path:
    """The model's folder. `with_weights`: they are fetched if they are not here."""
    model = config.model
    if model.path == BUNDLED:
        return TINY
    return resolve(model.path, with_weights=with_weights, made_by=model.made_by)


def find_shape(config: RunConfig) -> Path:
    """A folder with the model's config: the model's own, or that of its shape if it is not here. Fetches no weights."""
    model = config.model
    if model.shape and find_folder(model.path) is None and find_local(model.path) is None:
        return SHAPES / model.shape if (SHAPES / model.shape).is_dir() else user_path(model.shape)
    return find_checkpoint(config, with_weights=False)


def has_shape_only(config: RunConfig, folder: Path) -> bool:
    """Whether only the shape of the model in `folder` is known: weights are made up, or have not been fetched."""
    if is_dummy(config):
        return True
    is_own = config.model.path == BUNDLED or find_folder(config.model.path) is not None
    return not (has_weights(folder) if is_own else is_whole(folder))


def is_dummy(config: RunConfig) -> bool:
    """Whether weights are made up."""
    return config.model.load_format is LoadFormat.dummy


def foresees(config: RunConfig) -> bool:
    """Whether routers are asked early."""
    return config.pipeline.predictor is Prediction.lookahead


def computes_below(config: RunConfig, task: Task) -> bool:
    """Whether experts that are missing may be computed where they lie, in CPU memory below a device."""
    return config.pipeline.misses is Misses.cheapest and task.terms.rates.link is not None


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
    below: Below | None,
) -> Sweeper:
    """The sweep over this model with the config's strategy. `together`: see `Sweeper`.

    `below`: what lies below the device, which comes to nothing where all that is missing is to be moved.
    """
    strategy, plan = config.pipeline, task.plan
    return Sweeper(
        task.facts.expert_counts,
        Policy(strategy.prefetch, plan.hot_experts, strategy.on_demand, strategy.order, strategy.misses),
        predictor,
        residency,
        compute,
        worker,
        caches,
        plan.sequences,
        plan.scored_batches,
        together=together,
        ahead=ahead,
        below=below if computes_below(config, task) else None,
    )


def miss_costs(task: Task) -> MissCosts:
    """What an expert that is missing takes, by the planner's own costs."""
    costs = Costs(task.facts, task.terms.demand, task.terms.rates, task.terms.wishes)
    batch = Work(task.plan.batch_size, 0, 1, 0)
    attention = costs.attention(batch) / task.facts.num_layers
    return MissCosts(costs.moving, costs.below_turn, costs.below_token, attention)
