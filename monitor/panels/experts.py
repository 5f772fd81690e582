"""Which experts are used, and how well that was foreseen."""

from rich.console import Group, RenderableType
from rich.text import Text

from monitor.draw import heat
from monitor.facts import Facts
from monitor.panels.view import View
from monitor.state import Counts

__all__ = ["experts", "residents"]


def experts(view: View) -> RenderableType:
    """The panel."""
    state = view.state
    requested, used = state.prefetch
    hits = f"{used / requested:.0%} of {requested} guesses were used" if requested else "nothing was guessed yet"
    lines = [Text(f"prefetch: {hits}")]
    if not any(state.tokens.values()):
        return Group(*lines, Text("No expert has been computed yet, of which it is known."))
    count = 1 + max(expert for each in state.tokens.values() for expert in each)
    stay = residents(view.plan)
    room = max(2, (view.height - 5) // (2 + bool(stay)))
    lines += [Text("tokens by layer (down) and expert (across): ' ' none ░ few █ most of its layer", "bold")]
    lines += heat(state.tokens, count, view.width - 6, room)
    if any(state.arrivals.values()):
        lines += [Text("arrivals", "bold"), *heat(state.arrivals, count, view.width - 6, room)]
    if stay:
        lines += [Text("residents: █ stays for the whole run", "bold"), *heat(stay, count, view.width - 6, room)]
    return Group(*lines)


def residents(plan: Facts) -> Counts:
    """The experts that stay for the whole run, of each layer with experts."""
    found: Counts = {}
    for name in plan.words("residents"):
        match name.split():
            case ["layer", layer, "expert", expert] if is_number(layer) and is_number(expert):
                found.setdefault(int(layer), {})[int(expert)] = 1
    return found


def is_number(word: str) -> bool:
    """Whether it is that of a layer or an expert."""
    return word.isdecimal() and len(word) < 6
