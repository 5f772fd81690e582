"""What runs, how far it is, how fast, and what holds it up."""

import time
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from monitor.cause import find_bound, measured
from monitor.draw import bar, prose, spark
from monitor.panels.story import STORY
from monitor.panels.sweep import progress
from monitor.panels.view import SIGNS, View, rows_over_time
from monitor.units import plural, size, when

__all__ = ["overview"]

ROOMY = 30  # lines
MOST = 1 + 1e-9  # a share of the time; older versions wrote larger ones, by sampled rates that were too low
SCHEMA = 1  # of run folders, that is understood; see docs/events.md


def overview(view: View) -> RenderableType:
    """The panel."""
    lines = [*head(view), *warnings(view), *pace(view), *hindrance(view), *rows_over_time(view)]
    if view.height >= ROOMY:
        explanation = view.plan.text("explanation")
        lines += [Text(), prose(STORY, view.width, "dim"), Text(), prose(explanation, view.width)]
    else:
        lines.append(Text("w: what am I looking at?", "dim"))
    return Group(*lines)


def head(view: View) -> Iterator[Text]:
    """What runs, on what, and as planned."""
    word = view.status.word
    yield Text.assemble(
        (f"{SIGNS.get(word, '?')} {word}", "bold green" if word in ("running", "ok") else "bold red"),
        f"   {clock(view)}",
        "   (replay)" if not view.player.is_live else "",
    )
    if view.status.error:
        yield Text(view.status.error, "red")
    if doing := at_the_beginning(view):
        yield Text(doing, "bold")
    names = {name: view.config.text(name, "name") for name in ("model", "hw", "pipeline")}
    chosen = ", ".join(f"{group}={name}" for group, name in names.items() if name)
    yield Text(chosen or view.player.run.folder.name)
    if view.plan:
        yield Text(f"hardware  {hardware(view)}")
        group = f"{plural(view.plan.amount('n_batches'), 'batch')} of {view.plan.amount('batch_size'):.0f}"
        stay, stream = len(view.plan.words("residents")), size(view.plan.amount("streamed_bytes"))
        yield Text(f"plan      {group} at a time; {plural(stay, 'block')} stay, {stream} stream in a sweep")


def clock(view: View) -> str:
    """The run's clock, which is another one if the run is predicted."""
    if view.is_predicted:
        return f"predicted, clock {when(view.state.now)}"
    run = view.player.run
    if view.status.is_running and view.player.is_live and run.is_here and run.start:
        return f"for {when(max(0.0, time.time() - run.start))}"
    return f"clock {when(view.state.now)}"


def at_the_beginning(view: View) -> str:
    """What goes on before there is something to see."""
    if view.player.is_loading and view.player.has_read < 1:
        return f"reading the run's events: {view.player.has_read:.0%}"
    if view.state.num_sweeps or not view.player.is_live:
        return ""
    if not view.status.is_running:
        return "It has ended, and no sweep had."
    if not view.plan:
        return "It plans: there is no plan yet."
    if "compute" in view.state.lanes:
        return "The first sweep goes on, which reads prompts."
    return "It has planned, and loads what stays for the whole run."


def hardware(view: View) -> str:
    """Where it runs, and within what memory, in words."""
    plan, name = view.plan, view.config.text("hw", "name")
    is_here = view.player.run.is_here and not view.is_predicted
    budget = f"{size(plan.amount('budget'))} of memory"
    if reason := plan.text("budget_reason"):
        budget += f" ({reason})"
    if plan.number("rates", "link") is None:
        return f"{plural(len(view.cores), 'core') if is_here else name or 'cores'}, no GPU; {budget}"
    gpu = next((gpu.name for gpu in view.gpus), "") if is_here else ""
    below = plan.number("host_budget")
    return f"{gpu or name or 'a GPU'}; {budget}" + (f", {size(below)} of CPU memory below" if below else "")


def pace(view: View) -> Iterator[Text]:
    """How far it is, and how fast."""
    state, room = view.state, max(10, view.width - 30)
    expected = view.plan.amount("output_tokens")
    if expected:
        is_done = view.is_over and view.status.word == "ok"
        done = 1.0 if is_done else min(1.0, state.output_tokens / expected)
        yield Text.assemble("progress  ", bar(done, room))
    left = (expected - state.output_tokens) / state.rate if state.rate and expected > state.output_tokens else 0.0
    yield Text(
        f"tokens/s  {state.rate_now:.1f} now, {state.rate:.1f} over all"
        + (f"; {when(left)} left" if left and view.status.is_running else "")
    )
    so_far = f"{plural(state.output_tokens, 'token')} and {plural(state.requests, 'request')} done"
    yield Text(f"so far    {so_far} in {plural(state.num_sweeps, 'sweep')}")
    yield Text(f"history   {spark([each.output_tokens for each in state.sweeps], room)}")
    if (predicted := view.plan.number("predicted_output_tokens_per_second")) and state.rate:
        yield Text(f"planned   {predicted:.1f} tokens/s, {against_plan(view, state.rate / predicted)}")
    if view.sweep:
        yield Text(f"sweep     job {view.player.run.folder.name}; {progress(view)}")


def against_plan(view: View, share: float) -> str:
    """What the run reaches of the rate that was planned, if that follows from rates that were measured."""
    way = "disk" if view.plan.number("rates", "link") is None else "link"
    if not view.is_predicted and not {way, "compute"} <= measured(view.plan).keys():
        return "by rates that were not measured on its machine"
    return f"of which it reaches {share:.0%}" if share <= 1 else "and it is faster"


def hindrance(view: View) -> Iterator[Text]:
    """The bound, how near to it the run is, and why compute waits."""
    cause = view.cause
    if bound := bound_of(view):
        resource, efficiency, rates = bound
        share = f": busy for {efficiency:.0%} of the time at least" if efficiency <= MOST else ", which it exceeded"
        yield Text(f"bound     {resource}, by {rates} rates{share}")
        if cause.lane not in ("", "compute", resource):
            yield Text(f"          lately it is {cause.lane} that holds the run up, though: see below")
    elif view.state.works and view.status.is_running:
        yield Text("bound     known when the run has ended: the plan's rates were not measured on its machine")
    yield Text.assemble("waits     ", bar(cause.waits, max(10, view.width - 30), "red"))
    if view.player.is_live and not view.state.num_sweeps and view.status.is_running:
        return
    yield Text(cause.sentence)


def bound_of(view: View) -> tuple[str, float, str] | None:
    """The resource, the share of the time that it needs, and whose rates say so."""
    if resource := view.final.text("bound", "resource"):
        return resource, view.final.amount("bound", "efficiency"), "measured" if not view.is_predicted else "assumed"
    rates, kind = view.rates
    bound = find_bound(view.state, rates)
    return (bound.resource, bound.efficiency, kind) if bound else None


def warnings(view: View) -> Iterator[Text]:
    """What could not be understood."""
    if damaged := view.player.damaged:
        yield Text(f"{plural(damaged, 'line')} of events.jsonl could not be read", "yellow")
    schema = view.player.run.identity.number("schema")
    if schema is not None and schema > SCHEMA:
        yield Text(f"a newer klotski wrote this (schema {schema:.0f}): what is not known here is left out", "yellow")
