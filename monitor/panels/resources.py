"""What the run takes of its hardware, and, apart from it, what this machine does now."""

import os
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from monitor.draw import bar
from monitor.panels.view import View
from monitor.units import size

__all__ = ["resources"]


def resources(view: View) -> RenderableType:
    """The panel."""
    return Group(*of_the_run(view), Text(), *of_this_machine(view))


def of_the_run(view: View) -> Iterator[Text]:
    """Memory by tier, and what lanes move."""
    yield Text(f"the run, on {where(view)}:", "bold")
    has_gpu = view.plan.number("rates", "link") is not None
    yield from tier(view, "device", "memory", "budget", None if has_gpu else view.state.memory)
    yield from tier(view, "host", "host_memory", "host_budget", view.state.memory if has_gpu else None)
    if view.state.sweeps and (kept := view.state.sweeps[-1].cache_bytes):
        yield Text(f"  keys and values took {size(kept)} at the end of the last sweep", "dim")
    begin, end = view.span
    for name in view.lanes:
        lane = view.state.lanes[name]
        _, moved = lane.curve.between(begin, end)
        if lane.nbytes:
            yield Text(f"{name:8} {size(moved / (end - begin))}/s now, {size(lane.nbytes)} so far")


def where(view: View) -> str:
    """The machine that the run's figures are of."""
    hardware = view.config.text("hw", "name")
    host = view.player.run.identity.text("host") or "a machine that is not named"
    if view.is_predicted:
        return f"hw={hardware or 'auto'}, which is predicted"
    return "this machine" if view.player.run.is_here else f"{host}, another machine"


def tier(view: View, name: str, uses: str, budget: str, taken: int | None) -> Iterator[Text]:
    """What the plan gives out of a tier's memory, what for, and what is taken (None: nobody tells; 0: not yet)."""
    given, granted = view.plan.numbers(uses), view.plan.amount(budget)
    planned = sum(given.values())
    if not planned or granted <= 0:
        return
    width = max(10, view.width // 3)
    if taken:
        of = f" of {size(granted)} are taken now" if taken <= granted else f" and more: {size(taken)} are taken now"
        yield Text.assemble(f"{name:8} ", bar(taken / granted, width, "magenta"), of)
    yield Text.assemble(
        f"{'' if taken else name:8} ", bar(planned / granted, width, "dim"), f" of {size(granted)} are planned"
    )
    yield Text("  " + ", ".join(f"{use} {size(nbytes)}" for use, nbytes in given.items() if nbytes), "dim")


def of_this_machine(view: View) -> Iterator[Text]:
    """Cores and GPUs, whoever uses them."""
    is_the_runs = view.player.run.is_here and not view.is_predicted and view.player.is_live and view.status.is_running
    whose = "" if is_the_runs else "; not what is shown above"
    yield Text(f"this machine now ({os.uname().nodename}{whose}):", "bold")
    width = max(10, view.width // 3)
    for gpu in view.gpus:
        if gpu.busy is None and gpu.memory is None:
            yield Text(f"{gpu.name}: its driver does not answer", "yellow")
            continue
        busy = Text("use is not told") if gpu.busy is None else bar(gpu.busy, width)
        yield Text.assemble(f"{gpu.name:20} ", busy)
        memory = "not told" if gpu.used is None else f"{size(gpu.used)} of {size(gpu.memory or 0)}"
        yield Text(f"  memory {memory}; PCIe in {traffic(gpu.inward)}, out {traffic(gpu.outward)}")
    if not view.gpus:
        yield Text("There is no GPU on this machine; the cores compute.", "dim")
    for core, part in enumerate(view.cores):
        yield Text.assemble(f"core {core:<4}", bar(part, width))


def traffic(rate: float | None) -> str:
    """Bytes a second on PCIe."""
    return "not told" if rate is None else f"{size(rate)}/s"
