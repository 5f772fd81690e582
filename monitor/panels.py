"""The panels: each a picture of the state, as large as there is room."""

from collections.abc import Callable
from typing import Any, NamedTuple

import psutil
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from monitor.draw import BUBBLE, LEGEND, bar, heat, moments, spark, timeline
from monitor.hardware import Gpu
from monitor.player import Player
from monitor.source import Status
from monitor.state import Lane, State
from monitor.sweep import Job, Sweep, varied
from monitor.units import size, when

__all__ = ["PANELS", "View"]

ORDER = ("compute", "cores", "link", "kv_in", "kv_out", "disk")  # of lanes, from top to bottom
ROOMY = 30  # lines
SCHEMA = 1  # of run folders, that is understood; see docs/events.md
STORY = (
    "A sweep takes all batches through all layers. Blocks of weights (a layer's dense part, or one expert) arrive on a "
    "lane, each once for all batches; compute works with what is here, the most wanted experts first. Where it has to "
    f"wait for a block ({BUBBLE}), time is lost: the fuller its row, the better the transfers are hidden."
)
SIGNS = {"running": "▶", "ok": "✓", "failed": "✗", "interrupted": "■", "dead": "✝"}


class View(NamedTuple):
    """What a panel draws: a run, the moment that is shown, and how large."""

    player: Player
    status: Status
    plan: dict[str, Any]
    metrics: dict[str, Any]
    config: dict[str, Any]
    sweep: Sweep | None
    jobs: list[Job]
    gpus: list[Gpu]
    width: int
    height: int
    window: float
    """Seconds that the timeline shows."""

    @property
    def state(self) -> State:
        """How things stand."""
        return self.player.state

    def group(self, name: str) -> dict[str, Any]:
        """A group of the run's config; an empty one if it is not known."""
        group = self.config.get(name)
        return group if isinstance(group, dict) else {}

    @property
    def lanes(self) -> list[str]:
        """The lanes that the run has, compute first."""
        known = self.state.lanes
        return [name for name in ORDER if name in known] + sorted(set(known) - set(ORDER))

    @property
    def span(self) -> tuple[float, float]:
        """The time that is looked at."""
        is_over = self.player.is_live and not self.status.is_running
        end = self.state.active if is_over else self.state.now
        return max(0.0, end - self.window), max(end, 1e-3)


def overview(view: View) -> RenderableType:
    """What runs, how far it is, how fast, and what holds it up."""
    state, plan, metrics = view.state, view.plan, view.metrics
    word = view.status.word
    lines = [
        Text.assemble(
            (f"{SIGNS.get(word, '?')} {word}", "bold green" if word in ("running", "ok") else "bold red"),
            f"   {'predicted' if metrics.get('mode') == 'predicted' else 'clock'} {when(state.now)}",
            "   (replay)" if not view.player.is_live else "",
        )
    ]
    if view.status.error:
        lines.append(Text(str(view.status.error), "red"))
    groups = {name: view.group(name).get("name") for name in ("model", "hw", "pipeline")}
    chosen = ", ".join(f"{group}={name}" for group, name in groups.items() if name)
    lines.append(Text(chosen or view.player.run.folder.name))
    if plan:
        group = f"groups of {plan.get('n_batches')} batches of {plan.get('batch_size')}"
        stay, stream = len(plan.get("residents", [])), size(plan.get("streamed_bytes", 0))
        lines.append(Text(f"plan: {group}; {stay} blocks stay, {stream} stream in each sweep"))
    expected = float(plan.get("output_tokens", 0) or 0)
    if expected:
        lines.append(Text.assemble("progress  ", bar(state.output_tokens / expected, max(10, view.width - 30))))
    left = (expected - state.output_tokens) / state.rate if state.rate and expected > state.output_tokens else 0.0
    lines.append(
        Text(
            f"tokens/s  {state.rate_now:.1f} now, {state.rate:.1f} over all; {state.output_tokens} tokens in "
            f"{state.num_sweeps} sweeps" + (f"; {when(left)} left" if left and view.status.is_running else "")
        )
    )
    each_sweep = [each.get("output_tokens", 0) for each in state.sweeps]
    lines.append(Text(f"history   {spark(each_sweep, max(10, view.width - 30))}"))
    bound = metrics.get("bound") or {}
    if bound:
        near = f"what it needs at least is {bound.get('efficiency', 0):.0%} of the time"
        lines.append(Text(f"bound     {bound.get('resource')}: {near}"))
    elif state.num_sweeps:
        name, part = state.busiest
        lines.append(Text(f"bound     {name}: it has worked for {part:.0%} of the time so far"))
    if (predicted := plan.get("predicted_output_tokens_per_second")) and state.rate:
        lines.append(Text(f"planned   {predicted:.1f} tokens/s, of which it reaches {state.rate / predicted:.0%}"))
    if view.sweep:
        lines.append(Text(f"sweep     job {view.player.run.folder.name}; {progress(view)}"))
    begin, end = view.span
    cause = state.cause(begin, end, view.group("pipeline"), plan)
    waits = bar(cause.waits, max(10, view.width - 30), "red")
    lines += [Text(), Text.assemble("waits     ", waits), Text(cause.sentence)]
    if view.player.damaged:
        lines.append(Text(f"{view.player.damaged} lines of events.jsonl could not be read", "yellow"))
    schema = view.player.run.identity.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        lines.append(
            Text(f"a newer klotski wrote this (schema {schema}): what is not known here is left out", "yellow")
        )
    lines += [Text(), *rows_over_time(view)]
    if view.height >= ROOMY:
        lines += [Text(), Text(STORY, "dim"), Text(), Text(str(plan.get("explanation", "")))]
    return Group(*lines)


def lanes(view: View) -> RenderableType:
    """For each lane what waits, what it does now, how fast it is, and how busy."""
    begin, end = view.span
    rates = view.metrics.get("rates") or (view.plan.get("rates") or {})
    parts: list[RenderableType] = []
    for name in view.lanes:
        lane = view.state.lanes[name]
        count, nbytes = lane.waiting
        last = lane.spans[-1] if lane.spans else None
        took = sum(span.seconds for span in lane.between(begin, end))
        moved = sum(span.nbytes for span in lane.between(begin, end))
        head = Text(f"{name:8}", "bold")
        head.append_text(bar(lane.busy(begin, end), max(10, view.width // 3)))
        parts.append(head)
        facts = [f"waiting: {count} operations, {size(nbytes)}"] if name != "compute" else ["has no queue"]
        if last:
            facts.append(f"last: {last.name}")
        if moved and took:
            peak = rates.get(name)
            of_peak = f" of {size(peak)}/s" if isinstance(peak, int | float) and peak else ""
            facts.append(f"{size(moved / took)}/s{of_peak}")
        parts.append(Text("  " + "; ".join(facts), "dim"))
        parts.append(Text("  ").append_text(moments(lane, begin, end, view.width - 4, "cyan")))
    if not parts:
        parts.append(Text("No lane has done anything yet."))
    wanted = view.state.wanted
    if wanted:
        parts.append(Text("wait for a slot: " + ", ".join(f"{count} {why}" for why, count in wanted.items())))
    return Group(*parts)


def batches(view: View) -> RenderableType:
    """Each batch and the stage that it is in."""
    stages = ("waiting", "attention", "router", "experts", "done")
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("batch")
    table.add_column("layer", justify="right")
    for stage in stages:
        table.add_column(stage)
    phase, at = view.state.phase
    for batch, (stage, layer) in sorted(view.state.stages.items())[-max(1, view.height - 4) :]:
        # Those whose routers have spoken are in the group's expert phase, if that has come to their layer.
        shown = "experts" if stage == "router" and phase == "experts" and at == layer else stage
        marks = ["●" if each == shown else "·" for each in stages]
        table.add_row(str(batch), str(layer), *marks)
    if not view.state.stages:
        return Text("No batch has done anything yet.")
    return Group(Text(f"the group: {phase}, layer {at}"), table)


def time_line(view: View) -> RenderableType:
    """The last moments as lanes over time."""
    begin, end = view.span
    waits = sorted(view.state.bubbles.between(begin, end), key=lambda span: -span.seconds)[: max(3, view.height - 14)]
    longest = [Text(f"{1e3 * span.seconds:8.1f} ms at {when(span.begin)} for {span.name}") for span in waits]
    state = "the longest waits of compute:" if longest else "compute waited for nothing"
    lead = Text(f"{view.window:.3g} seconds   {LEGEND}", "dim")
    now = [Text(f"{name:9}{doing(view.state.lanes[name], end)}") for name in view.lanes]
    at = Text(f"at {when(end)}, the right edge:", "dim")
    return Group(lead, *rows_over_time(view), at, *now, Text(), Text(state), *longest)


def rows_over_time(view: View) -> list[Text]:
    """Compute's waits, the lanes, and a scale."""
    begin, end = view.span
    width = max(20, view.width - 12)
    over_time = timeline(view.state, view.lanes, begin, end, width)
    rows = [Text.assemble((f"{name:9}", "bold"), line) for name, line in over_time]
    first, last = when(begin), when(end)
    return [*rows, Text(" " * 9 + first.ljust(width - len(last)) + last, "dim")]


def doing(lane: Lane, moment: float) -> str:
    """What a lane did at a moment, or did last before it."""
    for span in reversed(lane.spans):
        if span.begin <= moment:
            took = f"{span.name} ({1e3 * span.seconds:.1f} ms)"
            return took if span.end >= moment else f"nothing, for {1e3 * (moment - span.end):.1f} ms; before it {took}"
    return "nothing yet"


def experts(view: View) -> RenderableType:
    """Which experts are used, and how well that was foreseen."""
    state = view.state
    requested, used = state.prefetch
    known = view.metrics.get("prefetch") or {}
    requested, used = known.get("requested", requested), known.get("used", used)
    hits = f"{used / requested:.0%} of {requested} guesses were used" if requested else "nothing was guessed yet"
    lines = [Text(f"prefetch: {hits}")]
    if not state.tokens:
        return Group(*lines, Text("No expert has been computed yet."))
    count = 1 + max(expert for each in state.tokens.values() for expert in each)
    stay = residents(view.plan)
    room = max(2, (view.height - 7) // (2 + bool(stay)))
    lines += [Text("tokens by layer (down) and expert (across): ' ' none ░ few █ most", "bold")]
    lines += heat(state.tokens, count, view.width - 6, room)
    if state.arrivals:
        lines += [Text("arrivals", "bold"), *heat(state.arrivals, count, view.width - 6, room)]
    if stay:
        lines += [Text("residents: █ stays for the whole run", "bold"), *heat(stay, count, view.width - 6, room)]
    return Group(*lines)


def residents(plan: dict[str, Any]) -> dict[int, dict[int, int]]:
    """The experts that stay for the whole run, of each layer with experts."""
    found: dict[int, dict[int, int]] = {}
    for name in plan.get("residents", []):
        match str(name).split():
            case ["layer", layer, "expert", expert] if layer.isdecimal() and expert.isdecimal():
                found.setdefault(int(layer), {})[int(expert)] = 1
    return found


def resources(view: View) -> RenderableType:
    """What the machine has to give, and what the run takes of it."""
    lines = []
    if view.gpus:
        for gpu in view.gpus:
            lines.append(Text.assemble(f"{gpu.name:20} ", bar(gpu.busy, max(10, view.width // 3))))
            traffic = f"PCIe in {size(gpu.inward)}/s, out {size(gpu.outward)}/s"
            lines.append(Text(f"  memory {size(gpu.used)} of {size(gpu.memory)}; {traffic}"))
    else:
        lines.append(Text("There is no GPU on this machine; the cores compute.", "dim"))
    for core, part in enumerate(psutil.cpu_percent(percpu=True)[: max(2, view.height - 12)]):
        lines.append(Text.assemble(f"core {core:<4}", bar(part / 100, max(10, view.width // 3))))
    taken = view.state.memory[-1][1] if view.state.memory else 0
    lines += tier(view, "device", view.plan.get("memory"), view.plan.get("budget"))
    lines += tier(view, "host", view.plan.get("host_memory"), view.plan.get("host_budget"))
    if taken:
        lines.append(Text(f"process  {size(taken)} of CPU memory now"))
    begin, end = view.span
    for name in view.lanes:
        lane = view.state.lanes[name]
        moved = sum(span.nbytes for span in lane.between(begin, end))
        if lane.nbytes:
            lines.append(Text(f"{name:8} {size(moved / (end - begin))}/s now, {size(lane.nbytes)} so far"))
    return Group(*lines)


def tier(view: View, name: str, uses: dict[str, int] | None, budget: float | None) -> list[Text]:
    """What the plan gives out of a tier's memory, and what for."""
    if not uses or not budget or not sum(uses.values()):
        return []
    given = sum(uses.values())
    whole = Text.assemble(f"{name:8} ", bar(given / budget, max(10, view.width // 3), "magenta"))
    whole.append(f" of {size(budget)} are given out")
    return [whole, Text("  " + ", ".join(f"{use} {size(nbytes)}" for use, nbytes in uses.items() if nbytes), "dim")]


def sweep(view: View) -> RenderableType:
    """The jobs of a sweep, and what came of them so far."""
    if view.sweep is None:
        return Text("This run is not part of a sweep: one command that runs jobs with several settings (-m).")
    keys = varied(view.jobs)
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("job", justify="right")
    for key in keys:
        table.add_column(key, overflow="fold")
    for figure in ("tokens/s", "n", "batch", "bound", "of bound", "waited"):
        table.add_column(figure, justify="right")
    table.add_column("status")
    for job in view.jobs[-max(1, view.height - 4) :]:
        metrics, bound = job.metrics, job.metrics.get("bound") or {}
        plan = job.run.plan()
        word = "predicted" if metrics.get("mode") == "predicted" and job.status.word == "ok" else job.status.word
        table.add_row(
            job.run.folder.name,
            *(job.settings.get(key, "") for key in keys),
            number(metrics.get("output_tokens_per_second"), ".1f"),
            number(plan.get("n_batches"), ".0f"),
            number(plan.get("batch_size"), ".0f"),
            str(bound.get("resource") or ""),
            number(bound.get("efficiency"), ".0%"),
            number(metrics.get("bubble_fraction"), ".0%"),
            f"{SIGNS.get(job.status.word, '?')} {word}",
        )
    return Group(Text(progress(view)), table)


def progress(view: View) -> str:
    """How far a sweep is."""
    ended = [job for job in view.jobs if not job.status.is_running]
    failed = sum(job.status.word != "ok" for job in ended)
    total = view.sweep.total if view.sweep else None
    whole = f" of {total}" if total else ""
    return f"{len(ended)}{whole} jobs have ended" + (f", {failed} of them not well" if failed else "")


def number(value: object, form: str) -> str:
    """A figure as it is written; nothing where there is none."""
    return format(value, form) if isinstance(value, int | float) else ""


def log(view: View) -> RenderableType:
    """The end of the run's log."""
    lines = view.player.run.log()[-max(1, view.height - 1) :]
    return Text("\n".join(lines) or "The log is empty.")


PANELS: dict[str, Callable[[View], RenderableType]] = {
    "Overview": overview,
    "Lanes": lanes,
    "Batches": batches,
    "Timeline": time_line,
    "Experts": experts,
    "Resources": resources,
    "Sweep": sweep,
    "Log": log,
}
"""By the name on their tab, in order."""
