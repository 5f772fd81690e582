"""Plots of what varied: each is drawn when the rows have what it needs."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from klotski.errors import ConfigError
from klotski.report.heat import draw_hot_experts
from klotski.report.marks import draw_bars, draw_lines
from klotski.report.rows import GROUP_SECONDS, Row
from klotski.report.runs import Setting
from klotski.report.series import BATCH_SIZE, N_BATCHES, PREDICTOR, describe, figure, gather, gather_layers
from klotski.report.style import save, styled
from klotski.units import parse_size

__all__ = ["draw_plots"]

RATE = partial(figure, "output_tokens_per_second")
TOKENS_PER_SECOND = "output tokens/s"
SCALES = {
    "hw.device_memory": ("device memory", "GB"),
    "hw.host_memory": ("CPU memory below the GPU", "GB"),
    "hw.link_bandwidth": ("bandwidth into the GPU", "GB/s"),
    "hw.disk_bandwidth": ("bandwidth of the disk", "GB/s"),
}
"""Settings that a throughput is drawn against, with what they are and their unit."""
TRULY_HOT = "predicted experts among the hottest"


def draw_plots(rows: Sequence[Row], folder: Path) -> list[Path]:
    """All plots that these rows have what it takes for, as PNG and SVG; their files.

    Raises:
        OutputError: they cannot be written.
    """
    files = []
    with styled():
        for name, draw in PLOTS.items():
            if drawn := draw(rows):
                files += save(drawn, folder, name)
    return files


def draw_throughput(rows: Sequence[Row]) -> Figure | None:
    """Tokens per second by the first thing that varied and is no number: strategies, architectures, placements."""
    keys = [key for key in rows[0].settings if key not in SCALES]
    key = next((key for key in keys if any(is_word(row.settings[key]) for row in rows)), None)
    return draw_bars(rows, key, RATE, f"Throughput by {key.rpartition('.')[2]}", TOKENS_PER_SECOND) if key else None


def draw_n(rows: Sequence[Row]) -> Figure | None:
    """Tokens per second against the batches that share an arrival: the paper's figure 14."""
    if N_BATCHES not in rows[0].settings:
        return None
    series = gather(rows, N_BATCHES, partial(figure, "plan.n_batches"), RATE)
    return draw_lines(
        rows, {"Throughput by n": series}, "n: batches that share each block's arrival", TOKENS_PER_SECOND
    )


def draw_scale(key: str, rows: Sequence[Row]) -> Figure | None:
    """Tokens per second against a capacity or a bandwidth of the machine."""
    if key not in rows[0].settings:
        return None
    what, unit = SCALES[key]
    series = gather(rows, key, partial(size_of, key), RATE)
    return draw_lines(rows, {f"Throughput by {what}": series}, f"{what}, {unit}", TOKENS_PER_SECOND)


def size_of(key: str, row: Row) -> float | None:
    """A setting in its unit, thousands of millions of bytes; None where it is `auto`, or no size."""
    try:
        nbytes = parse_size(key, str(row.settings[key]).removesuffix("/s"))
    except ConfigError:
        return None
    return nbytes / 1e9 if nbytes else None


def draw_latency(rows: Sequence[Row]) -> Figure | None:
    """Tokens per second against how long a group takes: the paper's figure 11."""
    if BATCH_SIZE not in rows[0].settings:
        return None
    series = gather(rows, BATCH_SIZE, partial(figure, GROUP_SECONDS), RATE)
    title = "Throughput against latency, by batch size"
    return draw_lines(
        rows, {title: series}, "seconds until the whole group has its output", TOKENS_PER_SECOND, labelled=True
    )


def draw_prefetch(rows: Sequence[Row]) -> Figure | None:
    """How often each predictor was right: the paper's figure 13."""
    if PREDICTOR not in rows[0].settings:
        return None
    right = partial(figure, "prefetch.among_hottest")
    return draw_bars(rows, PREDICTOR, right, "Prefetching by predictor", TRULY_HOT, share=True)


def draw_prefetch_by_layer(rows: Sequence[Row]) -> Figure | None:
    """The same, layer by layer, in a panel for each setting of what else varied."""
    if len(rows) > 1 and PREDICTOR not in rows[0].settings:
        return None
    panels: dict[str, list[Row]] = {}
    for row in rows:
        panels.setdefault(describe(row, PREDICTOR) or "Prefetching by layer", []).append(row)
    series = {title: gather_layers(panel) for title, panel in panels.items()}
    return draw_lines(rows, series, "layer", TRULY_HOT, share=True)


def is_word(value: Setting) -> bool:
    """Whether a setting is an option, and not a number or `auto`, which stands for one."""
    return isinstance(value, str) and value != "auto" and not value.isdecimal()


PLOTS: Mapping[str, Callable[[Sequence[Row]], Figure | None]] = {
    "throughput": draw_throughput,
    "throughput_by_n": draw_n,
    "throughput_by_memory": partial(draw_scale, "hw.device_memory"),
    "throughput_by_host_memory": partial(draw_scale, "hw.host_memory"),
    "throughput_by_link": partial(draw_scale, "hw.link_bandwidth"),
    "throughput_by_disk": partial(draw_scale, "hw.disk_bandwidth"),
    "throughput_by_latency": draw_latency,
    "hot_experts": draw_hot_experts,
    "prefetch": draw_prefetch,
    "prefetch_by_layer": draw_prefetch_by_layer,
}
"""By the name of their file: what draws them, or None where the rows have not got what it takes."""
