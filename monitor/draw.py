"""Pictures out of characters. Shape says everything that colour says, too."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from textwrap import fill

from rich.text import Text

from monitor.lane import Lane
from monitor.state import State

__all__ = ["BUBBLE", "LEGEND", "bar", "heat", "moments", "prose", "spark", "timeline"]

SHADES = " ▁▂▃▄▅▆▇█"
ROUGH = "·░▒▓"
HEAT = " ·░▒▓█"
BUBBLE = "x"
LEGEND = f"height: how busy   {BUBBLE}: compute waits for a block"
ROUGH_LEGEND = "   ░▒▓: not written in detail"
COLOURS = {
    "compute": "green",
    "disk": "cyan",
    "link": "blue",
    "kv_in": "magenta",
    "kv_out": "magenta",
    "cores": "yellow",
}


@lru_cache(maxsize=16)
def prose(text: str, width: int, style: str = "") -> Text:
    """A text in lines: where they end takes as long to find as all else of a panel, and is the same the next time."""
    return Text(fill(text, width, break_on_hyphens=False), style, no_wrap=True)


def bar(part: float, width: int, style: str = "green") -> Text:
    """A share of one as a bar with its number; what is more than all is all."""
    part = max(0.0, min(1.0, part))
    full = round(part * width)
    return Text.assemble(("█" * full, style), ("─" * (width - full), "dim"), f" {part:4.0%}")


def spark(values: Sequence[float], width: int) -> str:
    """Numbers as heights, the last on the right."""
    shown = list(values)[-width:]
    top = max(shown, default=0.0)
    return "".join(level(value / top if top else 0.0) for value in shown).rjust(width)


def level(part: float) -> str:
    """A character as high as a share of one; something is never nothing."""
    step = round(part * (len(SHADES) - 1))
    return SHADES[max(step, 1 if part > 0.01 else 0)]


def timeline(state: State, lanes: Iterable[str], begin: float, end: float, width: int) -> list[tuple[str, Text]]:
    """A row for each lane, compute above the others and its waits above it: how busy it was in each moment."""
    gaps = rough_columns(state, begin, end, width)
    waits = moments(state.bubbles, begin, end, width, "red bold", gaps, BUBBLE)
    return [
        ("waits", waits),
        *((name, moments(state.lanes[name], begin, end, width, COLOURS.get(name, "yellow"), gaps)) for name in lanes),
    ]


def moments(
    lane: Lane,
    begin: float,
    end: float,
    width: int,
    style: str,
    gaps: frozenset[int] = frozenset(),
    mark: str = "",
) -> Text:
    """How busy a lane was, moment by moment; or a mark where it was for half of one. `gaps`: only a sum is known."""
    step = (end - begin) / width
    done = [lane.curve.at(begin + step * column)[0] for column in range(width + 1)]
    parts = [min(1.0, (done[column + 1] - done[column]) / step) for column in range(width)]
    shapes = (
        rough(part) if column in gaps else marked(part, mark) if mark else level(part)
        for column, part in enumerate(parts)
    )
    return Text("".join(shapes), style)


def marked(part: float, mark: str) -> str:
    """A mark where a share is half of one and more."""
    return mark if part >= 0.5 else "·" if part > 0.05 else " "


def rough(part: float) -> str:
    """A share of one, of which nobody knows when."""
    return ROUGH[min(len(ROUGH) - 1, round(part * len(ROUGH)))]


def rough_columns(state: State, begin: float, end: float, width: int) -> frozenset[int]:
    """The moments of which only sums are told."""
    step = (end - begin) / width
    columns: set[int] = set()
    for left, right in state.gaps:
        if left < end and right > begin:
            first, last = (left - begin) / step + 0.5, (right - begin) / step - 0.5
            columns.update(range(max(0, int(first)), min(width - 1, int(last)) + 1))
    return frozenset(columns)


def heat(rows: Mapping[int, Mapping[int, int]], experts: int, width: int, height: int) -> list[Text]:
    """Layers by experts, the more of its layer the darker; several share a character where there is no room."""
    layers = sorted(rows)
    per_column = -(-max(1, experts) // max(1, width))
    per_row = -(-max(1, len(layers)) // max(1, height))
    wide = min(4, max(1, width // max(1, experts)))
    tops = {layer: max(rows[layer].values(), default=0) or 1 for layer in layers}
    lines = []
    for first in range(0, len(layers), per_row):
        group = layers[first : first + per_row]
        line, cells = Text(f"{group[0]:4} ", "dim"), []
        for column in range(0, experts, per_column):
            there = range(column, min(experts, column + per_column))
            part = max(rows[layer].get(expert, 0) / tops[layer] for layer in group for expert in there)
            step = max(1 if part else 0, round(part * (len(HEAT) - 1)))
            cells.append(("bold red" if part > 0.75 else "yellow" if part > 0.35 else "", HEAT[step] * wide))
        for style, same in groupby(cells, key=itemgetter(0)):  # a terminal draws a few long pieces faster
            line.append("".join(text for _, text in same), style)
        lines.append(line)
    return lines
