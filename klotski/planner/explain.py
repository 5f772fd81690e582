"""Why this plan, and what would have to grow for a faster one: a paragraph for whoever has never seen the code."""

from klotski.core import OnDemand
from klotski.planner.plan import Plan
from klotski.planner.search import ROUGH_SIZES, Appraiser
from klotski.planner.terms import Terms
from klotski.units import format_flops, format_seconds, format_size

__all__ = ["explain"]

MORE = 1_000_000_000  # bytes of memory on top; a quarter of the budget, where that is more
WORTH = 1.02  # less of a gain is within what a prediction is off by


def explain(plan: Plan, terms: Terms) -> str:
    """The paragraph. Plans again, roughly, with more memory, twice the disk and twice the arithmetic."""
    about = pace(plan), sharing(plan), holding(plan, terms), layers(plan, terms)
    return " ".join(sentence for sentence in (*about, growing(plan, terms), rates(plan)) if sentence)


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
    return (
        f"Of {format_size(plan.budget)} of memory, what sequences have to remember takes "
        f"{format_size(plan.memory['kv_cache'])}{below}, {plan.dense_slots + plan.expert_slots} slots that blocks are "
        f"read into take {format_size(slots)}{cache}, and {stays} ({format_size(plan.memory['residents'])})."
    )


def layers(plan: Plan, terms: Terms) -> str:
    """Whether computing hides reading, by the paper's last inequality."""
    whole = plan.conditions.each[-1]
    if not whole.transfer:
        return ""
    if terms.wishes.on_demand is OnDemand.lazy:
        return "A block is sent for when its turn comes, so that reading and computing take turns."
    times = f"a layer computes for {format_seconds(whole.compute)} and reads for {format_seconds(whole.transfer)}"
    if whole.holds:
        return f"While all batches decode, {times}: reading is hidden."
    return f"While all batches decode, {times}: it waits for blocks, and more sequences would share the wait."


def growing(plan: Plan, terms: Terms) -> str:
    """What would bring most, and how much."""
    more = max(MORE, terms.budget.nbytes // 4 // MORE * MORE)
    known = terms.rates
    cases = {
        f"{format_size(more)} more memory": terms._replace(budget=terms.budget._replace(nbytes=plan.budget + more)),
        **faster_ways(terms),
        "arithmetic twice as fast": terms._replace(rates=known._replace(compute=2 * known.compute)),
    }
    seconds = {name: at_best(case, plan.batch_size) for name, case in cases.items()}
    least = min(seconds, key=seconds.__getitem__)
    if plan.forecast.seconds < WORTH * seconds[least]:
        return f"Neither {', nor '.join(seconds)} is predicted to make a difference."
    each = ", ".join(f"{format_seconds(time)} with {name}" for name, time in seconds.items())
    gain = plan.forecast.seconds / seconds[least] - 1
    return (
        f"The whole run is predicted to take {format_seconds(plan.forecast.seconds)} "
        f"({plan.predicted_rate:.3g} output tokens a second), and {each}: {least} would bring most, "
        f"{gain:.0%} more tokens a second."
    )


def faster_ways(terms: Terms) -> dict[str, Terms]:
    """The same with each way that blocks come by twice as fast."""
    rates = terms.rates
    ways = {"a disk twice as fast": terms._replace(rates=rates._replace(disk=2 * rates.disk))}
    if rates.link is None:
        return ways
    ways = {"a link twice as fast": terms._replace(rates=rates._replace(link=2 * rates.link))} | ways
    if terms.budget.host < terms.facts.weight_bytes:
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
