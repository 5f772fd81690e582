"""The plan as tables, for a run that shall only say what it would do."""

from collections.abc import Callable, Iterable, Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from klotski.planner.facts import ModelFacts
from klotski.planner.plan import Plan
from klotski.planner.rates import Rates
from klotski.units import format_flops, format_seconds, format_size

__all__ = ["show_plan"]

USES = {
    "runtime": "interpreter and torch",
    "fixed": "embeddings and head",
    "staging": "the reader's buffers",
    "dense_slots": "slots for dense parts",
    "expert_slots": "slots for experts",
    "kv_cache": "cached keys and values",
    "layer_states": "sliding windows and recurrent states",
    "workspace": "experts' inputs and outputs",
    "activations": "activations",
    "residents": "blocks that stay",
    "weights": "blocks that come from there",
    "window": "blocks on their way from disk",
}


def per_second(rate: float) -> str:
    """Bytes a second."""
    return f"{format_size(rate)}/s"


def short(seconds: float) -> str:
    """A time of some milliseconds or less."""
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} us"


REACHES: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "link": ("into the GPU", per_second),
    "back": ("out of the GPU", per_second),
    "disk": ("disk", per_second),
    "start": ("a disk at rest", short),
    "compute": ("arithmetic", format_flops),
    "memory": ("memory, of cached keys", per_second),
    "below": ("memory below, of cached keys", per_second),
    "cores": ("arithmetic on the cores", format_flops),
    "cores_product": ("weights into a product there", per_second),
    "product": ("weights into a product", per_second),
    "turn": ("a batch's turn in a layer", short),
    "step": ("an expert's turn", short),
    "between": ("between operations", short),
    "wake": ("after a long wait", short),
}
"""Of the rates, what each is called, and how it is written."""
NOT_OF_CORES, NOT_OF_A_GPU = ("back", "below", "cores", "cores_product"), ("wake",)


def show_plan(plan: Plan, facts: ModelFacts, console: Console) -> None:
    """What was decided and why, what it takes of memory, and what is predicted."""
    console.print(table("decision value why", decisions(plan, facts)))
    console.print(table("machine value why", machine(plan.rates)))
    console.print(table("memory bytes share", memory(plan.memory, plan.budget)))
    if plan.host_memory:
        console.print(table("below bytes share", memory(plan.host_memory, plan.host_budget)))
    console.print(table("inequality computing transfers holds", conditions(plan)))
    console.print(table("predicted value", predictions(plan)))
    console.print(escape(plan.explanation), highlight=False)


def table(columns: str, rows: Iterable[tuple[str, ...]]) -> Table:
    """Rows under these columns, as they are."""
    made = Table(*columns.split(), title_justify="left")
    for row in rows:
        made.add_row(*map(escape, row))
    return made


def decisions(plan: Plan, facts: ModelFacts) -> Iterable[tuple[str, str, str]]:
    """Decision, value, and why."""

    def why(name: str, otherwise: str) -> str:
        return "as set" if name in plan.as_set else otherwise

    shares = f"share each arrival: what is read is used for up to {plan.sequences} sequences"
    yield "memory", format_size(plan.budget), plan.budget_reason
    if plan.host_memory:
        yield "host memory", format_size(plan.host_budget), plan.host_budget_reason
    yield "n batches", str(plan.n_batches), why("n_batches", shares)
    yield "batch size", str(plan.batch_size), why("batch_size", "more would need more memory, or take longer")
    cut = "of prompts in one sweep; more would need more memory, or take longer"
    yield "prefill tokens", str(plan.prefill_tokens), why("prefill_tokens", cut)
    ahead = f"the disk runs ahead; {plan.lent_slots} more while no prompts are read"
    yield "expert slots", str(plan.expert_slots), why("expert_slots", ahead)
    if plan.cached_slots:
        yield "of these, a cache", str(plan.cached_slots), plan.residents_reason
    yield "hot experts", str(plan.hot_experts), why("hot_experts", "as many as there are slots to spare")
    yield "blocks that stay", f"{len(plan.residents)} of {len(facts.block_bytes)}", plan.residents_reason
    if plan.kv_slots:
        yield "keys and values", "move", why("kv_slots", "a batch's come while another computes, and leave room")
    if plan.attends_below:
        yield "attention of new tokens", "on the cores", f"they look at {format_size(plan.rates.below)}/s where it lies"
    if plan.forecast.sweep.below:
        yield "missing experts", "some on the cores", "the coldest, as many as let the cores end with the link"


def machine(rates: Rates) -> Iterable[tuple[str, str, str]]:
    """What the machine is held to reach, and why."""
    absent = NOT_OF_CORES if rates.link is None else NOT_OF_A_GPU
    for name, (what, says) in REACHES.items():
        value = getattr(rates, name)
        if value is not None and name not in absent:
            yield what, says(value), rates.why(name)
    yield "dense parts", format_flops(rates.dense_share * rates.compute), rates.why("dense_share")


def memory(uses: Mapping[str, int], budget: int) -> Iterable[tuple[str, str, str]]:
    """Use, bytes, and share of the budget."""
    for use, size in (dict(uses) | {"left over": budget - sum(uses.values())}).items():
        yield USES.get(use, use), format_size(size), f"{size / budget:.1%}"


def conditions(plan: Plan) -> Iterable[tuple[str, str, str, str]]:
    """Inequality, its two sides in seconds of a layer, and whether it holds; then the smallest n."""
    for each in plan.conditions.each:
        binds = ", binds" if each in plan.conditions.binding else ""
        sides = format_seconds(each.compute), format_seconds(each.transfer)
        yield f"({each.number}) {each.says}", *sides, ("yes" if each.holds else "no") + binds
    smallest = plan.conditions.smallest_n
    yield "smallest n for all of them", str(smallest) if smallest else "none that fits", "", f"planned {plan.n_batches}"


def predictions(plan: Plan) -> Iterable[tuple[str, str]]:
    """What is expected, and of what a sweep is made."""
    sweep = plan.forecast.sweep
    yield "whole run", format_seconds(plan.forecast.seconds)
    yield "output tokens/s", f"{plan.predicted_rate:.3g}"
    yield "sweeps", f"{plan.forecast.sweeps:.0f}"
    yield "a sweep, in the mean", format_seconds(sweep.total)
    yield "  arrivals", f"{format_seconds(sweep.disk)} for {format_size(plan.forecast.nbytes)}"
    yield "  attention", format_seconds(sweep.attention)
    yield "  cached keys and values", format_seconds(sweep.cache)
    yield "  experts", format_seconds(sweep.experts)
    yield "  head", format_seconds(sweep.head)
    if sweep.below:
        yield "  experts on the cores", format_seconds(sweep.below)
