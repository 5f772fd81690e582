"""Pictures of every panel of the monitor, for the README and docs/: `python -m scripts.monitor_pictures RUN [SWEEP]`.

Of a run that is running as it runs, of one that has ended as it was in its middle; the panel of sweeps is of the last
job of a sweep, if one is named. In a small terminal and in a large one.
"""

import asyncio
import sys
from collections.abc import Iterable
from pathlib import Path

from monitor.app import Monitor
from monitor.panels import PANELS
from monitor.source import Run, RunList

FOLDER = Path("docs") / "monitor"
SIZES = ((80, 24), (160, 50))


async def take(run: Run, panels: Iterable[str], size: tuple[int, int]) -> None:
    """One SVG for each panel."""
    app = Monitor(run, run.folder.parent)
    folder = FOLDER / f"{size[0]}x{size[1]}"
    folder.mkdir(parents=True, exist_ok=True)
    async with app.run_test(size=size) as pilot:
        player = app.player
        assert player is not None
        while player.is_loading:
            await pilot.pause(0.5)
        if not run.status().is_running:
            sweeps = list(player.state.sweeps)
            player.seek(sweeps[len(sweeps) // 2].end)
            player.is_paused = True
        for name in panels:
            await pilot.press(str(1 + list(PANELS).index(name)))
            await pilot.pause(1.0)
            (folder / f"{name.lower()}.svg").write_text(app.export_screenshot(title="klotski-monitor"))


if __name__ == "__main__":
    for each in SIZES:
        asyncio.run(take(Run(Path(sys.argv[1])), PANELS, each))
        for sweep in sys.argv[2:]:
            asyncio.run(take(RunList(Path(sweep)).find()[0][0], ["Sweep"], each))
