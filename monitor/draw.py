"""Pictures out of characters. Shape says everything that colour says, too."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter

from rich.text import Text

from monitor.state import Lane, State

__all__ = ["BUBBLE", "LEGEND", "bar", "heat", "moments", "spark", "timeline"]

SHADES = " ▁▂▃▄▅▆▇█"
HEAT = " ·░▒▓█"
BUBBLE = "x"
LEGEND = f"height: how busy   {BUBBLE}: compute waits for a block"
COLOURS = {
    "compute": "green",
    "disk": "cyan",
    "link": "blue",
    "kv_in": "magenta",
    "kv_out": "magenta",
    "cores": "yellow",
}


def bar(part: float, width: int, style: str = "green") -> Text:
    """A share of one as a bar with its number."""
    full = round(max(0.0, min(1.0, part)) * width)
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
    waits = moments(state.bubbles, begin, end, width, "red bold", BUBBLE)
    return [
        ("waits", waits),
        *((name, moments(state.lanes[name], begin, end, width, COLOURS.get(name, "yellow"))) for name in lanes),
    ]


def moments(lane: Lane, begin: float, end: float, width: int, style: str, mark: str = "") -> Text:
    """How busy a lane was, moment by moment; or a mark where it was for half of one."""
    taken = [0.0] * width
    columns = width / (end - begin)  # a second
    for span in lane.between(begin, end):
        left, right = (span.begin - begin) * columns, (span.end - begin) * columns
        first = int(left)
        if left >= 0 and right <= first + 1:  # as most are
            taken[min(first, width - 1)] += span.seconds * columns
            continue
        weight = span.seconds / (span.end - span.begin)
        for column in range(max(0, first), min(width - 1, int(right)) + 1):
            taken[column] += weight * max(0.0, min(right, column + 1) - max(left, column))
    if mark:
        return Text("".join(mark if each >= 0.5 else "·" if each > 0.05 else " " for each in taken), style)
    return Text("".join(level(min(1.0, each)) for each in taken), style)


def heat(rows: Mapping[int, Mapping[int, int]], experts: int, width: int, height: int) -> list[Text]:
    """Layers by experts, the more the darker; several share a character where there is no room, or one has several."""
    layers = sorted(rows)
    per_column = -(-max(1, experts) // max(1, width))
    per_row = -(-max(1, len(layers)) // max(1, height))
    wide = min(4, max(1, width // max(1, experts)))
    top = max((count for each in rows.values() for count in each.values()), default=0) or 1
    lines = []
    for first in range(0, len(layers), per_row):
        group = layers[first : first + per_row]
        line, cells = Text(f"{group[0]:4} ", "dim"), []
        for column in range(0, experts, per_column):
            there = range(column, min(experts, column + per_column))
            most = max(rows[layer].get(expert, 0) for layer in group for expert in there)
            part = most / top
            step = max(1 if most else 0, round(part * (len(HEAT) - 1)))
            cells.append(("bold red" if part > 0.75 else "yellow" if part > 0.35 else "", HEAT[step] * wide))
        for style, same in groupby(cells, key=itemgetter(0)):  # a terminal draws a few long pieces faster
            line.append("".join(text for _, text in same), style)
        lines.append(line)
    return lines
