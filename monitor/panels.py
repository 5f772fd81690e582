"""The panels: each a picture of the state, as large as there is room."""

from collections.abc import Callable
from typing import Any, NamedTuple

import psutil
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from monitor.draw import LEGEND, bar, heat, size, spark, timeline, when
from monitor.hardware import Gpu
from monitor.player import Player
from monitor.source import Status
from monitor.state import State

__all__ = ["PANELS", "View"]

ORDER = ("compute", "link", "kv_in", "kv_out", "disk")  # of lanes, from top to bottom
SIGNS = {"running": "▶", "ok": "✓", "failed": "✗", "interrupted": "■", "dead": "✝"}


class View(NamedTuple):
    """What a panel draws: a run, the moment that is shown, and how large."""

    player: Player
    status: Status
    plan: dict[str, Any]
    metrics: dict[str, Any]
    config: dict[str, Any]
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
        end = self.state.now
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
        near = f"{bound.get('efficiency', 0):.0%} of the time was what it needs at least"
        lines.append(Text(f"bound     {bound.get('resource')}: {near}"))
    elif predicted := plan.get("predicted_output_tokens_per_second"):
        lines.append(Text(f"planned   {predicted:.1f} tokens/s"))
    begin, end = view.span
    cause = state.cause(begin, end, view.group("pipeline"))
    waits = bar(cause.waits, max(10, view.width - 30), "red")
    lines += [Text(), Text.assemble("waits     ", waits), Text(cause.sentence)]
    if view.player.damaged:
        lines.append(Text(f"{view.player.damaged} lines of events.jsonl could not be read", "yellow"))
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
        steps = 40
        width = (end - begin) / steps
        busy = [lane.busy(begin + step * width, begin + (step + 1) * width) for step in range(steps)]
        parts.append(Text("  " + spark([*busy, 1.0], steps + 1)[:-1], "cyan"))
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
    width = max(20, view.width - 12)
    rows = [
        Text.assemble((f"{name:9}", "bold"), line) for name, line in timeline(view.state, view.lanes, begin, end, width)
    ]
    scale = Text(" " * 9 + f"{when(begin)}".ljust(width - 8) + f"{when(end)}", "dim")
    waits = sorted(view.state.bubbles.between(begin, end), key=lambda span: -span.seconds)[: max(3, view.height - 14)]
    longest = [Text(f"{1e3 * span.seconds:8.1f} ms at {when(span.begin)} for {span.name}") for span in waits]
    state = "the longest waits of compute:" if longest else "compute waited for nothing"
    lead = Text(f"{view.window:.3g} seconds   {LEGEND}", "dim")
    return Group(lead, *rows, scale, Text(), Text(state), *longest)


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
    room = max(2, (view.height - 6) // 2)
    lines += [Text("tokens by layer (down) and expert (across): ' ' none ░ few █ most", "bold")]
    lines += heat(state.tokens, count, view.width - 6, room)
    if state.arrivals:
        lines += [Text("arrivals", "bold"), *heat(state.arrivals, count, view.width - 6, room)]
    return Group(*lines)


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
    budget = view.plan.get("budget")
    taken = view.state.memory[-1][1] if view.state.memory else 0
    if budget and taken:
        lines.append(Text.assemble("memory   ", bar(taken / budget, max(10, view.width // 3), "magenta")))
        lines.append(Text(f"  the process takes {size(taken)} of the {size(budget)} that it was given"))
    for use, nbytes in (view.plan.get("memory") or {}).items():
        lines.append(Text(f"  {use:14}{size(nbytes)}", "dim"))
    for use, nbytes in (view.plan.get("host_memory") or {}).items():
        lines.append(Text(f"  host: {use:8}{size(nbytes)}", "dim"))
    if "disk" in view.state.lanes:
        lines.append(Text(f"disk     {size(view.state.lanes['disk'].nbytes)} read so far"))
    return Group(*lines)


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
    "Log": log,
}
"""By the name on their tab, in order."""
