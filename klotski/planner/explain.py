"""Why this plan, and what would have to grow for a faster one: a paragraph for whoever has never seen the code."""

from dataclasses import replace

from klotski.core import Misses, OnDemand
from klotski.planner.plan import WORTH, Plan
from klotski.planner.rates import Rates
from klotski.planner.search import ROUGH_SIZES, Appraiser
from klotski.planner.terms import Terms
from klotski.units import format_flops, format_seconds, format_size

__all__ = ["explain"]

MORE = 1_000_000_000  # bytes of memory on top; a quarter of the budget, where that is more
NEARLY = 0.9  # of CPU memory: with more, more sequences might share an arrival


def explain(plan: Plan, terms: Terms) -> Plan:
    """The plan with what more of each resource would bring, and with the paragraph."""
    plan = replace(plan, growth=with_more(plan, terms))
    about = (
        pace(plan),
        leaving(plan),
        sharing(plan),
        holding(plan, terms),
        layers(plan, terms),
        growing(plan),
        with_cores(plan, terms),
        rates(plan),
    )
    return replace(plan, explanation=" ".join(sentence for sentence in about if sentence))


def with_more(plan: Plan, terms: Terms) -> dict[str, float]:
    """Seconds of the run with more of each resource. Plans again, roughly, for each."""
    more = max(MORE, terms.budget.nbytes // 4 // MORE * MORE)
    cases = {
        f"{format_size(more)} more memory": terms._replace(budget=terms.budget._replace(nbytes=plan.budget + more)),
        **faster_ways(plan, terms),
        "arithmetic twice as fast": terms._replace(rates=faster_arithmetic(terms.rates)),
    }
    return {name: at_best(case, plan.batch_size) for name, case in cases.items()}


def pace(plan: Plan) -> str:
    """What a sweep takes its time for."""
    sweep = plan.forecast.sweep
    takes = f"one pass through all layers is predicted to take {format_seconds(sweep.total)}"
    computes = f"arithmetic takes {format_seconds(sweep.arithmetic)}"
    if plan.forecast.nbytes < 1:
        return f"Arithmetic sets the pace: every block stays in memory, and {takes}."
    below = "disk" if plan.rates.link is None else "CPU memory" + " and disk" * is_short(plan)
    caches_move = plan.kv_slots and not plan.attends_below
    moved = format_size(plan.forecast.nbytes) + (" of weights, and keys and values," if caches_move else "")
    reads = f"reading {moved} from {below} takes {format_seconds(sweep.disk)}"
    if sweep.disk > sweep.arithmetic:
        slow = "The disk" if plan.rates.link is None or is_short(plan) else "The way into the GPU"
        return f"{slow} sets the pace: {takes}, of which {reads}, while {computes}."
    return f"Arithmetic sets the pace: {takes}, of which {computes}, while {reads}."


def leaving(plan: Plan) -> str:
    """What the cores beside a GPU compute."""
    below = plan.forecast.sweep.below
    if not below:
        return ""
    return (
        f"Of the experts that are missing on the GPU the cores compute the coldest where they lie, for "
        f"{format_seconds(below)} of each pass, while the others move."
    )


def is_short(plan: Plan) -> bool:
    """Whether CPU memory below a GPU lacks so much that the disk takes longer than the way into the GPU."""
    if plan.rates.link is None or not plan.streamed_bytes:
        return False
    lacking = 1 - plan.host_memory["weights"] / plan.streamed_bytes
    return lacking / plan.rates.disk > 1 / plan.rates.link


def sharing(plan: Plan) -> str:
    """What n and the batch size are good for."""
    if plan.sequences == 1:
        return "There is one sequence, so that nobody shares what is read."
    batches = f"{plan.n_batches} batches of {plan.batch_size} share" if plan.n_batches > 1 else "One batch shares"
    return f"{batches} each arrival: a block that is read is used for up to {plan.sequences} sequences."


def holding(plan: Plan, terms: Terms) -> str:
    """What memory is spent on."""
    blocks, stay = len(terms.facts.block_bytes), len(plan.residents)
    slots = plan.memory["dense_slots"] + plan.memory["expert_slots"]
    stays = f"{'none' if not stay else 'all' if stay == blocks else stay} of the {blocks} blocks stay"
    looked_at = ", where the cores look at them" if plan.attends_below else ""
    below = f" ({format_size(plan.host_memory['kv_cache'])} are in CPU memory{looked_at})" if plan.kv_slots else ""
    cache = f", of which {plan.cached_slots} are a cache" if plan.cached_slots else ""
    kept = format_size(plan.memory["kv_cache"] + plan.memory["layer_states"])
    return (
        f"Of {format_size(plan.budget)} of memory, what layers keep of sequences takes {kept}{below}, "
        f"{plan.dense_slots + plan.expert_slots} slots that blocks are read into take {format_size(slots)}{cache}, and "
        f"{stays} ({format_size(plan.memory['residents'])})."
    )


def layers(plan: Plan, terms: Terms) -> str:
    """Whether computing hides reading, by the paper's last inequality."""
    whole = plan.conditions.each[-1]
    if not whole.transfer or plan.forecast.sweep.below:  # the inequalities know of no cores
        return ""
    if terms.wishes.on_demand is OnDemand.lazy:
        return "A block is sent for when its turn comes, so that reading and computing take turns."
    times = f"a layer computes for {format_seconds(whole.compute)} and reads for {format_seconds(whole.transfer)}"
    if whole.holds:
        return f"While all batches decode, {times}: reading is hidden."
    return f"While all batches decode, {times}: it waits for blocks, and more sequences would share the wait."


def growing(plan: Plan) -> str:
    """What would bring most, and how much."""
    best = plan.next_resource
    if best is None:
        return f"Neither {', nor '.join(plan.growth)} is predicted to make a difference."
    each = ", ".join(f"{format_seconds(seconds)} with {name}" for name, seconds in plan.growth.items())
    gain = plan.forecast.seconds / plan.growth[best] - 1
    return (
        f"The whole run is predicted to take {format_seconds(plan.forecast.seconds)} "
        f"({plan.predicted_rate:.3g} output tokens a second), and {each}: {best} would bring most, "
        f"{gain:.0%} more tokens a second."
    )


def with_cores(plan: Plan, terms: Terms) -> str:
    """Whether it would help to let the cores compute experts, where the way into a GPU sets the pace."""
    sweep = plan.forecast.sweep
    is_bound = terms.rates.link is not None and sweep.disk > sweep.arithmetic and not is_short(plan)
    if not is_bound or terms.wishes.misses is Misses.cheapest:
        return ""
    seconds = at_best(terms._replace(wishes=terms.wishes._replace(misses=Misses.cheapest)), plan.batch_size)
    if plan.forecast.seconds <= WORTH * seconds:
        return ""
    return (
        f"Were some of the experts that are missing on the GPU computed on the cores (pipeline.misses=cheapest), "
        f"the run would be predicted to take {format_seconds(seconds)}."
    )


def faster_arithmetic(rates: Rates) -> Rates:
    """Of what computes, all twice as fast: products, and the memory that they are fed from."""
    return rates._replace(compute=2 * rates.compute, product=2 * rates.product, memory=2 * rates.memory)


def faster_ways(plan: Plan, terms: Terms) -> dict[str, Terms]:
    """The same with each way that blocks come by twice as fast, and with more memory on it."""
    rates = terms.rates
    ways = {"a disk twice as fast": terms._replace(rates=rates._replace(disk=2 * rates.disk))}
    if rates.link is None:
        return ways
    back = None if rates.back is None else 2 * rates.back
    ways = {"a link twice as fast": terms._replace(rates=rates._replace(link=2 * rates.link, back=back))} | ways
    if plan.attends_below:
        ways["CPU memory twice as fast"] = terms._replace(rates=rates._replace(below=2 * rates.below))
    if plan.forecast.sweep.below:
        faster = rates._replace(cores=2 * rates.cores, cores_product=2 * rates.cores_product)
        ways["cores twice as fast"] = terms._replace(rates=faster)
    if plan.window_places or sum(plan.host_memory.values()) > NEARLY * terms.budget.host:
        more = max(MORE, terms.budget.host // 4 // MORE * MORE)
        larger = terms._replace(budget=terms.budget._replace(host=terms.budget.host + more))
        ways[f"{format_size(more)} more CPU memory"] = larger
    return ways


def at_best(terms: Terms, batch_size: int) -> float:
    """Seconds of a run on other terms, with batches of about the best size, or of this one."""
    appraiser = Appraiser(terms, [*ROUGH_SIZES, batch_size])
    return appraiser.forecast(appraiser.best()).seconds


def rates(plan: Plan) -> str:
    """What the predictions rest on."""
    rates = plan.rates
    link = "" if rates.link is None else f"{format_size(rates.link)}/s into the GPU, "
    return (
        f"Predicted for {link}{format_size(rates.disk)}/s by disk and {format_flops(rates.compute)} ({rates.reason})."
    )
